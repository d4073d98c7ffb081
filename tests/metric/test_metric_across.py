"""Both sides' momentum over processes: where one recording ends, the others go on, and nobody waits for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from two_processes import together

from dyn_probe import load_trace
from dyn_probe.metric.split import side_gradients

STEPS, ENDS = 6, 3
SIDES = ["all_chosen", "all_rejected"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """How the second process's recording ends → the folder of two trainings, without and with the recorder."""
    folders = {}
    for how in ("never", "closed", "failed"):
        folders[how] = tmp_path_factory.mktemp(how)
        done = together(str(Path(__file__).parents[1] / "support" / "split_processes.py"), str(folders[how]), how)
        assert done.returncode == 0, done.stderr[-3000:]
    return folders


def sides(folder: Path) -> np.ndarray:
    """``[rows, 2]`` what both sides contributed, where that is known."""
    pushes = load_trace(folder).pushes.sort_values(["step", "pair_id", "side"])
    return pushes.dropna(subset=SIDES)[["step", *SIDES]].to_numpy()


@pytest.mark.parametrize("how", ["never", "closed", "failed"])
def test_the_training_goes_on_as_without_the_recorder(runs, how):
    for rank in range(2):
        weights = torch.load(runs[how] / f"weights-{rank}.pt", weights_only=True)
        assert all(torch.equal(value, weights["recorded"][name]) for name, value in weights["plain"].items())


@pytest.mark.parametrize(("how", "last"), [("never", STEPS), ("closed", ENDS), ("failed", ENDS)])
def test_a_recording_that_ends_in_one_process_keeps_nobody_waiting(runs, how, last):
    trace = load_trace(runs[how] / "rank-0")
    assert list(trace.pairs["step"].unique()) == list(range(STEPS))
    assert len(trace.pushes.dropna(subset=["own_chosen"])) == STEPS * 2 * 2
    assert set(sides(runs[how] / "rank-0")[:, 0]) == set(range(last))
    reason = (trace.manifest.get("pushes") or {}).get("reason")
    assert reason == (None if how == "never" else "split momentum ended: the recording of another process ended")


@pytest.mark.parametrize("how", ["closed", "failed"])
@pytest.mark.parametrize("rank", [0, 1])
def test_until_then_both_sides_are_what_they_are_otherwise(runs, how, rank):
    whole, found = sides(runs["never"] / f"rank-{rank}"), sides(runs[how] / f"rank-{rank}")
    assert len(found) == ENDS * 2 * 2 and np.array_equal(found, whole[: len(found)])
    assert np.abs(found[:, 1:]).min() > 0


def test_a_parameter_may_be_one_number():
    chosen, rejected = side_gradients([], "scale", torch.tensor(1.0, dtype=torch.bfloat16))
    assert chosen.shape == rejected.shape == () and chosen.dtype == torch.float32


@pytest.mark.parametrize("rank", [0, 1])
def test_both_sides_of_all_processes_make_the_whole_step(runs, rank):
    """The loss has no other terms: what all chosen and all rejected gradients contributed, and decay, is the total."""
    pushes = load_trace(runs["never"] / f"rank-{rank}").pushes
    made, size = pushes[[*SIDES, "decay"]].sum(axis=1), pushes[[*SIDES, "total"]].abs().max(axis=1)
    assert ((made - pushes["total"]).abs() / size).max() < 1e-4
