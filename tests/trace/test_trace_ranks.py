"""Several processes record into one trace: rank 0 owns the folder, and each waits for the others."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from trace_samples import recorded_steps, step_rows

from dyn_probe.errors import TraceError
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.writer import TraceWriter


def test_two_ranks_are_merged_by_step_then_rank_then_order(tmp_path: Path) -> None:
    first = TraceWriter(tmp_path / "run", {}, flush_rows=3)
    second = TraceWriter(tmp_path / "run", {}, rank=1, flush_rows=2)
    for step in (0, 2, 1):
        for writer in (second, first):
            writer.add("pairs", [{"step": step, "pair_id": name} for name in "ba"])
            writer.add("layers", [{"step": step, "layer": f"{writer.rank}{name}"} for name in "ba"])
    wanted = [(step, rank, name) for step in range(3) for rank in range(2) for name in "ba"]
    for close in (lambda: (first.flush(), second.flush()), lambda: (second.close(), first.close())):
        close()
        trace = load_trace(tmp_path / "run")
        assert list(zip(trace.pairs["step"], trace.pairs["rank"], trace.pairs["pair_id"], strict=True)) == wanted
        layers = [
            (step, int(name[0]), name[1])
            for step, name in zip(trace.layers["step"], trace.layers["layer"], strict=True)
        ]
        assert layers == wanted
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "layers.parquet",
        "pairs.parquet",
        "run.json",
    ]


RANK = """
import sys, time
from dyn_probe.trace.writer import TraceWriter
out, rank, delay, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
time.sleep(delay)
with TraceWriter(out, {"world": 2}, rank=rank, session="one launch") as writer:
    for step in range(50):
        writer.add("pairs", [{"step": step, "pair_id": f"{rank}.{step}"}])
    time.sleep(seconds)
"""


@pytest.mark.parametrize("late", [0, 1], ids=["rank 0 opens last", "rank 1 opens and closes last"])
def test_two_processes_wait_for_each_other(tmp_path: Path, late: int) -> None:
    commands = [
        [
            sys.executable,
            "-c",
            RANK,
            str(tmp_path / "run"),
            str(rank),
            str(0.4 * (rank == late)),
            str(0.4 * rank),
        ]
        for rank in (0, 1)
    ]
    if late == 1:  # rank 0 must see rank 1 at work before it closes
        commands[0][-1] = "1.2"
        commands[1][-1] = "1.6"
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    pairs = load_trace(tmp_path / "run").pairs
    assert list(pairs["pair_id"]) == [f"{rank}.{step}" for step in range(50) for rank in (0, 1)]
    assert not (tmp_path / "run/streams").exists()


def test_rank_zero_waits_until_the_others_have_closed(tmp_path: Path) -> None:
    first = TraceWriter(tmp_path / "run", {})
    second = TraceWriter(tmp_path / "run", {}, rank=1)
    closing = threading.Thread(target=first.close)
    closing.start()
    time.sleep(0.2)
    assert closing.is_alive()
    second.add("pairs", step_rows(7))
    second.close()
    closing.join(timeout=10)
    assert not closing.is_alive()
    assert recorded_steps(tmp_path / "run") == [7]
    assert (tmp_path / "run/pairs.parquet").exists()


def test_a_rank_that_never_closes_costs_no_row(tmp_path: Path) -> None:
    first = TraceWriter(tmp_path / "run", {}, wait_seconds=0.1)
    second = TraceWriter(tmp_path / "run", {}, rank=1)
    first.add("pairs", step_rows(0))
    second.add("pairs", step_rows(0))
    with pytest.warns(RuntimeWarning, match=r"not merged: rank1 had not closed 0\.1 s after rank 0"):
        first.close()
    second.add("pairs", step_rows(1))
    second.close()
    trace = load_trace(tmp_path / "run")
    assert trace.closed
    assert "rank1" in trace.manifest["unmerged"]
    assert recorded_steps(trace) == [0, 0, 1]
    TraceWriter(tmp_path / "run", {}, resume=True).close()  # merges what was left
    assert recorded_steps(tmp_path / "run") == [0, 0, 1]
    assert not (tmp_path / "run/streams").exists()


def test_a_stopped_rank_zero_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = TraceWriter(tmp_path / "run", {})
    TraceWriter(tmp_path / "run", {}, rank=1).add("pairs", step_rows(0))  # dropped: its rows are written
    other = TraceWriter(tmp_path / "run", {}, rank=2)
    waits: list[float] = []
    monkeypatch.setattr("dyn_probe.trace.opening.time.sleep", waits.append)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        writer.close("stopped", "out of memory")
    assert not waits
    assert recorded_steps(tmp_path / "run") == [0]
    other.close()


def test_only_rank_zero_writes_run_json(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = TraceWriter(run, {"config": {"lr": 0.1}})
    before = (run / "run.json").stat()
    with TraceWriter(run, {"config": {"lr": 0.2}}, rank=1) as second:
        second.add("pairs", step_rows(0))
        second.update_manifest(config={"lr": 0.3})
    after = (run / "run.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    first.close()
    assert load_trace(run).manifest["config"] == {"lr": 0.1}


def test_a_rank_without_rank_zero_gives_up_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(TraceError, match=r"rank 0 did not open .*run for recording within 0\.1 s"):
        TraceWriter(run, {}, rank=1, wait_seconds=0.1)
    assert not run.exists()
    TraceWriter(run, {}).close()
    with pytest.raises(TraceError, match="is closed in session"):
        TraceWriter(run, {}, rank=1, wait_seconds=0.1)


def test_a_rank_does_not_join_another_session(tmp_path: Path) -> None:
    first = TraceWriter(tmp_path / "run", {}, session="monday")
    with pytest.raises(TraceError, match="in session tuesday within"):
        TraceWriter(tmp_path / "run", {}, rank=1, session="tuesday", wait_seconds=0.1)
    TraceWriter(tmp_path / "run", {}, rank=1, session="monday").close()
    first.close()


def test_a_rank_does_not_join_the_trace_of_a_crash(tmp_path: Path) -> None:
    """Without a session, a rank tells an old trace from a new one by the mark it left there."""
    run = tmp_path / "run"
    script = (
        "import os, sys; from dyn_probe.trace.writer import TraceWriter\n"
        "kept = [TraceWriter(sys.argv[1], {}, rank=rank, flush_seconds=0) for rank in (0, 1)]\n"
        "[writer.add('pairs', [{'step': 5}]) for writer in kept]; os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(run)], check=False)
    assert recorded_steps(run) == [5, 5]
    opened: list[TraceWriter] = []
    waiting = threading.Thread(target=lambda: opened.append(TraceWriter(run, {}, rank=1, force=True)))
    waiting.start()
    time.sleep(0.2)
    assert not opened
    first = TraceWriter(run, {}, force=True)
    waiting.join(timeout=10)
    opened[0].add("pairs", step_rows(0))
    opened[0].close()
    first.close()
    assert recorded_steps(run) == [0]


def test_two_processes_of_one_rank_are_refused(tmp_path: Path) -> None:
    first = TraceWriter(tmp_path / "run", {})
    second = TraceWriter(tmp_path / "run", {}, rank=1)
    with pytest.raises(TraceError, match="rank 1 has recorded there already"):
        TraceWriter(tmp_path / "run", {}, rank=1, wait_seconds=0.1)
    second.close()
    first.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the row has nowhere to go
def test_a_stream_that_is_overwritten_is_an_error(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "run", {}, flush_seconds=0)
    writer.add("pairs", step_rows(0))
    (tmp_path / "run/streams/pairs-rank0.arrow").unlink()
    with pytest.raises(TraceError, match="was removed while it was written"):
        writer.add("pairs", step_rows(1))
    del writer
    gc.collect()


def test_a_rank_that_comes_back_does_not_overwrite_its_rows(tmp_path: Path) -> None:
    first = TraceWriter(tmp_path / "run", {})
    with TraceWriter(tmp_path / "run", {}, rank=1) as second:
        second.add("pairs", step_rows(0))
    again = TraceWriter(tmp_path / "run", {}, rank=1)
    again.add("steps", [{"step": 1}])
    again.flush()
    again.add("pairs", step_rows(1))
    with pytest.raises(TraceError, match="because it exists: two processes record as the same rank"):
        again.flush()
    assert recorded_steps(tmp_path / "run") == [0]
    again._buffer._pending.clear()
    again.close()
    first.close()
