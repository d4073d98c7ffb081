"""Log-probabilities before training, where no reference says them: a change of every pair for every objective."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from loop_runs import run, small

from dyn_probe.report.changes import run_change, run_start
from dyn_probe.report.verdicts.generalised import held_out_line
from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.train.loop import record
from dyn_probe.train.run import WarmStart

SIDES = ("chosen", "rejected")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    """One start, trained with a reference and without one."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: run(folder / name, objective=name) for name in ("dpo", "simpo")}


def test_a_run_without_a_reference_starts_where_one_with_it_says(runs: dict[str, Trace]) -> None:
    reference = runs["dpo"].pairs.drop_duplicates("pair_id").set_index("pair_id")
    found = runs["simpo"].final.set_index("pair_id")
    assert set(found.index) == set(reference.index) and len(found) > 10
    for side in SIDES:
        known = reference[f"ref_logp_{side}"].reindex(found.index)
        np.testing.assert_allclose(found[f"start_logp_{side}"], known, rtol=1e-5)
        assert runs["dpo"].final[f"start_logp_{side}"].isna().all()
        np.testing.assert_allclose(run_start(runs["dpo"])[f"logp_{side}"].reindex(found.index), known)


@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_every_objective_has_a_change_of_each_pair_from_before_training(name: str, runs: dict[str, Trace]) -> None:
    moved, start = run_change(runs[name]), runs["dpo"].pairs.drop_duplicates("pair_id").set_index("pair_id")
    assert moved is not None and "from before training to the end of the run" in moved.basis
    end = runs[name].final.set_index("pair_id").reindex(list(moved.ids))
    for side in SIDES:
        by_hand = (end[f"logp_{side}"] - start[f"ref_logp_{side}"].reindex(end.index)) / end[f"len_{side}"]
        np.testing.assert_allclose(moved.side(side), by_hand, atol=1e-5)
    assert held_out_line(runs[name]).startswith("On held-out pairs chosen ")


@pytest.mark.parametrize("change", [{"max_pairs": 16}, {"batch_size": 2}], ids=str)
def test_a_start_is_taken_over_by_runs_of_the_same_pairs_and_batches(change: dict[str, int], tmp_path: Path) -> None:
    """Others make a start of their own: sums of other batches round otherwise."""
    warm, made = WarmStart(), []
    common = {"sft_steps": 2, "max_pairs": 24, "batch_size": 4}
    for name, options in (("first", {}), ("again", {"objective": "ipo"}), ("other", change)):
        before = warm.weights, warm.table
        record(small(tmp_path / name, **common | options), progress=False, warm=warm)  # no step draws random numbers
        made.append((warm.weights is not before[0], warm.table is not before[1]))
    assert made == [(True, True), (False, False), (True, True)]
    shared = load_trace(tmp_path / "other").pairs
    alone = load_trace(record(small(tmp_path / "alone", **common | change), progress=False)).pairs
    pd.testing.assert_frame_equal(shared, alone, check_exact=True)


def test_nothing_is_measured_where_no_pair_is_evaluated_at_the_end(tmp_path: Path) -> None:
    bare = run(tmp_path / "bare", objective="simpo", final_pairs=0)
    assert not len(bare.final)
    moved = run_change(bare)
    assert moved is None or "before training" not in moved.basis
