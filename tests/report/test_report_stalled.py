"""A loss that is saturated or stuck, pairs that are alike, rejected that rises: each verdict on the run that has it,
on no other, and on both sides of its threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from moved_runs import moved_run
from report_checks import only, value
from report_frames import DEFAULT, Options, simulate
from report_runs import manifest, write_tables

from dyn_probe.report.ranked import RANKINGS, chosen_ranking, ranked_pairs
from dyn_probe.report.verdicts import movement, stalled, useless
from dyn_probe.report.verdicts.stalled import GONE, LEVEL, NEAR
from dyn_probe.trace.reader import Trace, load_trace

STATEMENTS = (stalled.saturated, stalled.stuck, useless.useless)


def with_pairs(path: Path, **columns: object) -> Trace:
    tables = simulate(DEFAULT)
    tables["pairs"] = tables["pairs"].assign(**columns)
    return load_trace(write_tables(path, tables, manifest(DEFAULT)))


def faded(left: float) -> np.ndarray:
    """Pulls of which so much is left after a fifth of the run."""
    steps = simulate(DEFAULT)["pairs"].step
    return np.where(steps < 20, 0.05, 0.05 * left)


def alone(trace: Trace, statement: object) -> None:
    """The statement speaks, and no other of these."""
    assert [one.__name__ for one in STATEMENTS if one(trace)] == [statement.__name__]  # type: ignore[attr-defined]


def test_a_healthy_run_triggers_none(tmp_path: Path) -> None:
    healthy = moved_run(tmp_path / "run", 0.2, -0.5, Options(regime="case1"))
    assert [one(healthy) for one in STATEMENTS] == [[], [], []]
    assert only(movement.overall(healthy)).level == "ok"


def test_a_loss_that_fades_at_once_is_saturated(tmp_path: Path) -> None:
    gone = with_pairs(tmp_path / "gone", pull_chosen=faded(0.9 * GONE), pull_rejected=faded(0.5 * GONE))
    alone(gone, stalled.saturated)
    found = only(stalled.saturated(gone))
    assert value(found, "left_at_once_chosen") == pytest.approx(0.9 * GONE) and found.level == "warning"
    assert value(found, "left_at_once_rejected") == pytest.approx(0.5 * GONE)
    left = with_pairs(tmp_path / "left", pull_chosen=faded(1.1 * GONE), pull_rejected=faded(0.5 * GONE))
    assert stalled.saturated(left) == []


@pytest.mark.parametrize(("off", "said"), [(0.9 * NEAR, True), (1.1 * NEAR, False)])
def test_a_loss_that_never_leaves_log_two_is_stuck(off: float, said: bool, tmp_path: Path) -> None:
    run = with_pairs(tmp_path / "run", loss=LEVEL - off)
    assert bool(stalled.stuck(run)) == said
    if said:
        alone(run, stalled.stuck)
        found = only(stalled.stuck(run))
        assert value(found, "loss_last") == pytest.approx(LEVEL - off) and "0.693" in found.sentence


def test_pairs_that_are_alike_are_counted_once_each(tmp_path: Path) -> None:
    pairs = simulate(DEFAULT)["pairs"]
    ids = pairs.pair_id.drop_duplicates().to_numpy()
    run = with_pairs(
        tmp_path / "run",
        edit_distance=np.where(pairs.pair_id.isin(ids[:2]), 0.0, 0.5),
        len_rejected=np.where(pairs.pair_id == ids[1], 0, pairs.len_rejected),
        grad_cosine=np.where(pairs.pair_id.isin(ids[:4]), 0.9995, pairs.grad_cosine),
    )
    alone(run, useless.useless)
    found = only(useless.useless(run))
    assert [value(found, key) for key in ("identical", "empty", "nearly_equal", "n")] == [1, 1, 2, len(ids)]
    assert found.level == "warning" and "cannot raise one response" in found.sentence
    apart = np.where(pairs.pair_id.isin(ids[:4]), 0.9985, pairs.grad_cosine)
    assert useless.useless(with_pairs(tmp_path / "apart", grad_cosine=apart)) == []
    one = np.where(pairs.pair_id == ids[0], 0.9995, pairs.grad_cosine)
    assert only(useless.useless(with_pairs(tmp_path / "one", grad_cosine=one))).level == "note"


@pytest.mark.parametrize(
    ("rejected", "level"), [(-0.5, "ok"), (0.05, "note"), (0.99 * movement.LARGE, "note"), (0.48, "warning")]
)
def test_a_rise_of_rejected_has_the_standing_of_a_fall_of_chosen(rejected: float, level: str, tmp_path: Path) -> None:
    found = only(movement.overall(moved_run(tmp_path / "run", 0.3, rejected)))
    assert found.level == level and bool(found.knobs) == (level != "ok")
    assert ("Rejected rose by" in found.sentence) == (rejected > 0)


def test_pairs_are_ranked_by_rejected_where_that_is_the_trouble(tmp_path: Path) -> None:
    run = moved_run(tmp_path / "risen", 0.3, 0.48)
    assert chosen_ranking(run) == "rejected" and "rise of rejected" in RANKINGS["rejected"].meaning
    first = pd.to_numeric(ranked_pairs(run, top=None)["run_change_rejected"]).to_numpy()
    assert (np.diff(first) <= 1e-12).all() and np.isfinite(first).all()
    assert chosen_ranking(moved_run(tmp_path / "fallen", -0.3, 0.48)) == "run"


def test_a_side_that_never_pulled_says_nothing_about_its_share(tmp_path: Path) -> None:
    still = np.zeros(len(faded(1)))
    for pulls in ((faded(0.5 * GONE), still), (still, faded(0.5 * GONE))):
        run = with_pairs(tmp_path / f"run{pulls[0][0]}", pull_chosen=pulls[0], pull_rejected=pulls[1])
        assert stalled.saturated(run) == []
