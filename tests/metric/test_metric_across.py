"""Both sides' momentum over processes: where one recording ends, the others go on, and nobody waits for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from two_processes import together

from dyn_probe import load_trace

STEPS, ENDS = 6, 3


@pytest.mark.parametrize(("how", "last"), [("never", STEPS), ("closed", ENDS), ("failed", ENDS)])
def test_a_recording_that_ends_in_one_process_keeps_nobody_waiting(tmp_path, how, last):
    done = together(str(Path(__file__).parents[1] / "support" / "split_processes.py"), str(tmp_path), how)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        weights = json.loads((tmp_path / f"weights-{rank}.json").read_text())
        assert weights["plain"] == weights["recorded"]
    trace = load_trace(tmp_path / "rank-0")
    assert list(trace.pairs["step"].unique()) == list(range(STEPS))
    sides = trace.pushes.dropna(subset=["all_chosen"])
    assert list(sides["step"].unique()) == list(range(last))
    assert len(trace.pushes.dropna(subset=["own_chosen"])) == STEPS * 2 * 2
    reason = (trace.manifest.get("pushes") or {}).get("reason")
    assert reason == (None if how == "never" else "split momentum ended: the recording of another process ended")
