"""A recorder does not hide what went wrong: numbers that are not finite are counted, a violated law stays noted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from trust import lies, versions
from trust.lies import plain_numbers
from trust.soak import PAIRS, Tiny, batch_of

from dyn_probe import Probe, load_trace, sequence_logps
from dyn_probe.probe import following
from dyn_probe.report import summary


def train(folder: Path, spoilt: int, value: float) -> None:
    """Four recorded steps; before one of them a weight takes the value."""
    torch.manual_seed(0)
    model = Tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, folder, optimizer=optimizer, gram_every=1, metric_every=1) as probe:
        for step in range(4):
            if step == spoilt:
                model.head.weight.data[0, 0] = value
            optimizer.zero_grad()
            with probe.step(step, batch_of(step).ids):
                logps = sequence_logps(model, batch_of(step))
                probe.pairs(logps)
                (logps[PAIRS:] - logps[:PAIRS]).mean().backward()
            optimizer.step()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_steps_with_numbers_that_are_not_finite_say_so(value: float, tmp_path: Path) -> None:
    train(tmp_path / "run", 2, value)
    steps = load_trace(tmp_path / "run").steps.set_index("step")["not_finite"]
    assert steps[[0, 1]].isna().all() and (steps[[2, 3]] >= 2 * PAIRS).all()


def test_none_are_counted_where_all_is_well(tmp_path: Path) -> None:
    train(tmp_path / "run", -1, 0.0)
    assert load_trace(tmp_path / "run").steps["not_finite"].isna().all()


def test_a_violated_law_stays_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later step that cannot be taken apart does not take the place of one that did not add up."""
    real, seen = following.Following._moved, []

    def moved(self: following.Following, *given: object) -> None:
        seen.append(None)
        change = {"law7_error": 0.5} if len(seen) == 2 else {"reason": "told to"} if len(seen) == 3 else {}
        assert self._watch is not None
        self._watch.facts = replace(self._watch.facts, **change)
        real(self, *given)

    monkeypatch.setattr(following.Following, "_moved", moved)
    train(tmp_path / "run", -1, 0.0)
    note = load_trace(tmp_path / "run").about.pushes
    assert note is not None and (note.trusted, note.step, note.law7_error, note.reason) == (False, 1, 0.5, "told to")


def test_wrong_numbers_that_are_planted_are_said(tmp_path: Path) -> None:
    tally = lies.try_lies(tmp_path, 1, seed=5)
    assert tally.holds, tally.failures
    assert set(tally.parts) == set(lies.PLANTED) and tally.tried == len(lies.PLANTED)


def test_a_lie_that_is_not_said_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "alarms", lambda trace: [])
    monkeypatch.setattr(lies, "status", SimpleNamespace(law1=lambda trace: []))
    tally = lies.try_lies(tmp_path, 1, seed=5)
    quiet = {"nothing is wrong", "a pair without weight in the loss"}
    assert {name for name, row in tally.parts.items() if not row["failed"]} == quiet and not tally.holds


def test_errors_of_half_precision_are_those_of_plain_autograd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = lies.try_precision(tmp_path / "sound", 1, seed=5)
    assert tally.holds and tally.tried == len(lies.KINDS), tally.failures
    monkeypatch.setattr(lies, "plain_numbers", lambda *given: 1.001 * plain_numbers(*given))
    assert lies.try_precision(tmp_path / "off", 1, seed=5).zero["errors mismeasured"] == len(lies.KINDS)


def test_a_version_whose_tests_fail_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, truth in (("good", "True"), ("bad", "False")):
        (tmp_path / f"test_{name}.py").write_text(f"def test_it():\n    assert {truth}\n", encoding="utf-8")
    tests = {
        ("a", "1"): ("test_good.py",),
        ("b", "2"): ("test_good.py", "test_bad.py"),
        ("c", "3"): ("test_good.py",),
        ("d", "4"): ("test_good.py",),
    }
    monkeypatch.setattr(versions, "VERSIONS", tests)
    monkeypatch.setattr(versions, "NEWEST", ("test_missing.py",))
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(
        versions, "install", lambda package, version: "no network" if package in "cd" else tmp_path / package
    )
    tally = versions.try_versions(tmp_path, 0, 0)
    assert tally.parts["a 1"] == {"tests passed": 1, "tests failed": 0}
    assert tally.parts["b 2"] == {"tests passed": 1, "tests failed": 1}
    assert tally.parts["those of constraints.txt"] == {"tests passed": 0, "tests failed": 1}
    assert tally.zero == {"failed": 2} and tally.tried == 3
    assert tally.facts == {"not tried:": "c 3 (no network); d 4 (no network)"}
