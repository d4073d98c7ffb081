"""SPPO in the loop: win probabilities of the data in its soft form, and a word when a target is passed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import run, tiny

from dyn_probe.data import prepared
from dyn_probe.errors import BadInput
from dyn_probe.train import loop, setup

SOFT: dict[str, Any] = dict(objective="sppo:soft=true,beta=0.01", dtype="float64", steps=1, batch_size=4)


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the pairs carry these win probabilities, by their number, as a data reader would."""

    def giving(value: Callable[[int], float | None]) -> None:
        def encode(*arguments: Any) -> Any:
            pairs, skipped = encode_pairs(*arguments)
            return [dataclasses.replace(p, win_probability=value(i)) for i, p in enumerate(pairs)], skipped

        encode_pairs = prepared.encode_pairs
        monkeypatch.setattr(prepared, "encode_pairs", encode)

    return giving


def test_the_soft_form_trains_on_the_datas_win_probabilities(give: Any, tmp_path: Path) -> None:
    """At the first step h_w = h_l = 0, so d_w = 2(P − ½)/β and d_l = 2(½ − (1 − P))/β."""
    give(lambda i: 0.5 + 0.04 * i)
    known = {p.pair_id: p.win_probability for p in setup.prepare(tiny(tmp_path / "none", **SOFT)).pairs}
    pairs = run(tmp_path / "run", **SOFT).pairs
    wanted = [2 * (known[i] - 0.5) / 0.01 for i in pairs["pair_id"]]
    np.testing.assert_allclose(pairs["pull_chosen"], wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(pairs["pull_rejected"], wanted, rtol=1e-9, atol=1e-9)
    assert pairs["pull_chosen"].nunique() == 4


def test_certainty_is_the_hard_form(give: Any, tmp_path: Path) -> None:
    give(lambda i: 1.0)
    soft, hard = run(tmp_path / "soft", **SOFT), run(tmp_path / "hard", **SOFT | {"objective": "sppo:beta=0.01"})
    assert list(soft.pairs["loss"]) == list(hard.pairs["loss"])


def test_pairs_without_a_win_probability_are_left_out_with_their_reason(give: Any, tmp_path: Path) -> None:
    give(lambda i: {0: None, 1: 1.5, 2: float("nan")}.get(i, 0.75))
    trace = run(tmp_path / "run", **SOFT)
    reasons = [row["reason"] for row in trace.manifest["skipped_rows"]]
    assert reasons == [
        "no win_probability, which sppo reads",
        "win_probability 1.5 is not from 0 to 1, which sppo reads",
        "win_probability nan is not from 0 to 1, which sppo reads",
    ]
    assert trace.manifest["data"]["pairs"] == 9


def test_without_any_the_soft_form_is_refused_by_name(give: Any, tmp_path: Path) -> None:
    give(lambda i: None)
    with pytest.raises(BadInput) as caught:
        loop.record(tiny(tmp_path / "run", **SOFT), progress=False)
    said = str(caught.value)
    assert said.startswith("sppo with soft=true reads a win_probability (the probability that chosen beats rejected")
    assert "no pair of sentiment:long-suffix has one" in said and "the first: no win_probability" in said
    assert said.endswith("give the data that column, or leave the option off")
    assert not (tmp_path / "run").exists()


def said_by(options: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines that the run says of targets."""
    lines: list[str] = []
    monkeypatch.setattr("dyn_probe.train.display.Display.say", lambda self, text: lines.append(text))
    run(out, **options)
    return [line for line in lines if "target" in line]


def test_a_passed_target_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With targets of ±0.05 nats the first updates pass them."""
    options = dict(objective="sppo", beta=10.0, steps=4, lr=1e-2)
    (line,) = said_by(options, tmp_path / "near", monkeypatch)
    assert "the target of sppo, ±0.05 nats on the log-ratios, is passed" in line and "pairs; a smaller beta" in line
    assert not said_by(options | {"beta": None}, tmp_path / "far", monkeypatch)


def test_a_loss_without_a_target_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label smoothing turns pulls too, but DPO has no target to pass."""
    options = dict(objective="dpo:label_smoothing=0.4,beta=2", steps=4, lr=1e-2)
    assert not said_by(options, tmp_path / "run", monkeypatch)
    assert (run(tmp_path / "again", **options).pairs["pull_chosen"] < 0).any()
