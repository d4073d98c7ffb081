"""A trace goes on after a crash or an end, and no row is in it twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trace_samples import recorded_steps, step_rows

from dyn_probe.errors import TraceError
from dyn_probe.trace import lock
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.writer import TraceWriter

KILLED = """
import os, sys
from dyn_probe.trace.writer import TraceWriter
writer = TraceWriter(sys.argv[1], {"config": {"lr": 1}, "data": {"pairs": 9}})
for table in ("pairs", "layers"):
    writer.add(table, [{"step": step, "pair_id": "before"} for step in range(6)])
writer.add("examples", [{"pair_id": "a"}])
writer.flush()
os.kill(os.getpid(), 9)
"""


def _first(run: Path, end: str) -> None:
    """A trace of steps 0 … 5, killed or closed."""
    subprocess.run([sys.executable, "-c", KILLED, str(run)], check=False)
    if end == "closed":
        TraceWriter(run, {}, resume=True).close()
        assert (run / "pairs.parquet").exists()
    assert load_trace(run).closed is (end == "closed")


def _rows(run: Path, table: str = "pairs") -> list[tuple[int, str]]:
    frame = load_trace(run).table(table)
    return list(zip(map(int, frame["step"]), frame["pair_id"], strict=True))


@pytest.mark.parametrize("end", ["killed", "closed"])
def test_rows_recorded_again_replace_the_old_ones(tmp_path: Path, end: str) -> None:
    run = tmp_path / "run"
    _first(run, end)
    wanted = [(step, "before") for step in range(4)] + [(step, "after") for step in range(4, 8)]
    with TraceWriter(run, {"config": {"lr": 2}}, resume=True, resume_step=4) as writer:
        assert recorded_steps(run) == [0, 1, 2, 3]
        writer.add("pairs", [{"step": step, "pair_id": "after"} for step in range(4, 8)])
        writer.add("examples", [{"pair_id": name} for name in "ab"])
        writer.flush()
        assert _rows(run) == wanted
        assert not load_trace(run).closed
    assert _rows(run) == wanted
    assert _rows(run, "layers") == wanted[:4]  # a table that is not written again is cut all the same
    trace = load_trace(run)
    assert trace.closed
    assert list(trace.examples["pair_id"]) == ["a", "b"]
    assert (trace.manifest["config"], trace.manifest["data"]) == ({"lr": 2}, {"pairs": 9})
    assert trace.manifest["resumes"][-1]["step"] == 4
    assert not (run / "streams").exists()


@pytest.mark.parametrize("end", ["killed", "closed"])
def test_without_a_step_everything_stays(tmp_path: Path, end: str) -> None:
    run = tmp_path / "run"
    _first(run, end)
    with TraceWriter(run, {}, resume=True) as writer:
        writer.add("pairs", step_rows(6, 7))
    assert recorded_steps(run) == list(range(8))


@pytest.mark.parametrize("closed", [False, True], ids=["streams", "parquet"])
def test_every_resume_cuts_what_came_before_it_and_nothing_after(tmp_path: Path, closed: bool) -> None:
    run = tmp_path / "run"
    _first(run, "killed")
    for name, start in (("second", 3), ("third", 8), ("fourth", 5)):
        writer = TraceWriter(run, {}, resume=True, resume_step=start)
        writer.add("pairs", [{"step": start + step, "pair_id": name} for step in range(6)])
        if closed:
            writer.close()
        else:
            writer._finalizer()  # as if the process had ended
    wanted = ["before"] * 3 + ["second"] * 2 + ["fourth"] * 6
    assert _rows(run) == list(enumerate(wanted))
    assert [point["segment"] for point in load_trace(run).manifest["resumes"]] == [1, 2, 3]


def test_resume_of_a_torn_stream_keeps_both_parts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _first(run, "killed")
    stream = run / "streams/layers-rank0.arrow"
    os.truncate(stream, stream.stat().st_size - 5)
    with TraceWriter(run, {}, resume=True, resume_step=6) as writer:
        writer.add("layers", [{"step": 6}])
    assert recorded_steps(run, "layers") == [6]  # the torn batch was the only one
    assert recorded_steps(run) == list(range(6))
    assert [entry["stream"] for entry in load_trace(run).torn] == ["layers-rank0.arrow"]


def test_two_ranks_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = TraceWriter(run, {}), TraceWriter(run, {}, rank=1)
    for writer in (first, second):
        writer.add("pairs", step_rows(0, 1, 2))
    second.close()
    first.close()
    first = TraceWriter(run, {}, resume=True, resume_step=2, session="again")
    second = TraceWriter(run, {}, rank=1, resume=True, resume_step=2, session="again")
    for writer in (first, second):
        writer.add("pairs", step_rows(2, 3, loss=-1.0))
    second.flush()
    assert (run / "streams/pairs-rank1-seg1.arrow").exists()
    second.close()
    first.close()
    pairs = load_trace(run).pairs
    assert list(zip(pairs["step"], pairs["rank"], strict=True)) == [(s, r) for s in range(4) for r in range(2)]
    assert list(pairs["loss"]) == [0.0, 0.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0]


def test_what_cannot_be_resumed_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="does not exist"):
        TraceWriter(tmp_path / "run", {}, resume=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "other").mkdir()
    with pytest.raises(TraceError, match=r"has no run\.json"):
        TraceWriter(tmp_path / "other", {}, resume=True)
    assert list((tmp_path / "other").iterdir()) == []


def test_arguments_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "run", {}).close()
    for arguments, wanted in (
        ({"resume": True, "force": True}, "only one of them"),
        ({"resume_step": 3}, "it needs resume=True"),
        ({"resume": True, "rank": 1}, "write session="),
        ({"rank": -1}, "wanted rank >= 0"),
        ({"flush_rows": 0}, "flush_rows >= 1"),
        ({"flush_seconds": -1.0}, "flush_seconds >= 0"),
    ):
        with pytest.raises(TraceError, match=wanted):
            TraceWriter(tmp_path / "run", {}, **arguments)  # type: ignore[arg-type]
    assert load_trace(tmp_path / "run").closed


def test_one_recorder_at_a_time(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "run", {})
    for arguments in ({"resume": True}, {"force": True}):
        with pytest.raises(TraceError, match="another process is recording into it"):
            TraceWriter(tmp_path / "run", {}, **arguments)
    writer.add("pairs", step_rows(0))
    writer.close()
    TraceWriter(tmp_path / "run", {}, resume=True).close()
    assert recorded_steps(tmp_path / "run") == [0]


def test_a_recorder_that_starts_while_somebody_asks_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks holds the lock for a moment, which passes here while the recorder waits; a recorder keeps it."""
    asking = lock.FolderLock(tmp_path)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: asking.release())
    recorder = lock.FolderLock(tmp_path)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: pytest.fail("asking never waits"))
    assert lock.is_recording(tmp_path)
    recorder.release()
    assert not lock.is_recording(tmp_path)
