"""A few faults while a run is recorded; ``make trust`` tries all kinds, many times."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from trust import fault_disk, faults, soak
from trust.fault_matrix import FAULTS, try_faults
from trust.fault_runs import missing_rows
from trust.faults import lost_rows, start

import dyn_probe.trace.streams as streams
from dyn_probe.trace.writer import TraceWriter


@pytest.mark.parametrize(
    "name",
    ["SIGKILL while writing, one process, resumed twice", "read-only file system", "two recorders on one folder"],
)
def test_a_fault_costs_no_flushed_row(name: str, tmp_path: Path) -> None:
    assert FAULTS[name][0](tmp_path, Random(5)) == (0, "")


@pytest.mark.skipif(not fault_disk.mounting(), reason="no file system can be mounted here")
def test_a_disk_that_is_really_full_costs_no_flushed_row(tmp_path: Path) -> None:
    assert fault_disk.full(tmp_path, Random(5)) == (0, "")


def test_a_step_that_is_missing_or_has_another_loss_is_seen(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run", {}) as writer:
        writer.add("pairs", [{"step": 0, "pair_id": pair, "loss": loss} for pair, loss in (("a", 0.5), ("b", 0.7))])
    assert missing_rows(tmp_path / "run", {(0, 0): 0.6}, 2) == 0
    assert missing_rows(tmp_path / "run", {(0, 0): 0.7}, 2) == 1
    assert missing_rows(tmp_path / "run", {(0, 0): 0.6, (1, 0): 0.6}, 2) == 2


@pytest.mark.slow
def test_none_of_all_faults_does(tmp_path: Path) -> None:
    tally = try_faults(tmp_path, nightly=False, seed=2)
    assert tally.holds, tally.failures


@pytest.mark.parametrize("number", range(12))
def test_damage_is_named_and_never_another_number(number: int, tmp_path: Path) -> None:
    assert faults.damaged(tmp_path, Random(f"trust {number}")) == (0, "")


def test_damage_that_is_read_in_silence_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = TraceWriter(tmp_path / "run", {})
    writer.add("pairs", [{"step": step, "pair_id": "pair 1", "loss": step + 0.1} for step in range(4)])
    writer._finalizer()
    file = tmp_path / "run/streams/pairs-rank0.arrow"
    assert faults._read_damaged(tmp_path / "run", file, 4) == ""
    assert "missing in silence" in faults._read_damaged(tmp_path / "run", file, 5)
    read = streams.read_stream

    def other(path: Path, schema: object) -> object:
        found = read(path, schema)  # type: ignore[arg-type]
        place = found.data.column_names.index("loss")
        return streams.replace(found, data=found.data.set_column(place, "loss", [[9.0] * 4]))

    monkeypatch.setattr("dyn_probe.trace.merge.read_stream", other)
    assert faults._read_damaged(tmp_path / "run", file, 4) == "4 numbers are others"


def test_rows_that_are_lost_are_seen(tmp_path: Path) -> None:
    run = start(tmp_path / "run", steps=3)
    assert run.wait() == [0] and run.said == {(0, 0), (0, 1), (0, 2)}
    assert lost_rows(run.out, run.said) == 0
    assert lost_rows(run.out, {*run.said, (0, 3)}) == 4


def test_a_long_run_leaves_nothing_open(tmp_path: Path) -> None:
    tally = soak.soak(tmp_path, 60)
    assert tally.zero["handles left open"] == 0 and tally.zero["rows lost"] == 0, tally.failures
