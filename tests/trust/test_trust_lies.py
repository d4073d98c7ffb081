"""A recorder does not hide what went wrong: numbers that are not finite are counted, a violated law stays noted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trust.soak import PAIRS, Tiny, batch_of

from dyn_probe import Probe, load_trace, sequence_logps
from dyn_probe.probe import following


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
