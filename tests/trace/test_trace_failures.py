"""A trace that cannot be written: said once, counted, and no reason for training to stop unless it is asked to."""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from trace_samples import recorded_steps, step_rows

from dyn_probe.errors import TraceError, WriteFailed
from dyn_probe.report.verdicts.status import unwritten
from dyn_probe.trace import buffer, manifest, streams
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.writer import TraceWriter


class Disk:
    """Stands at the lowest layer, in the place of ``os.write``: it can be full."""

    def __init__(self) -> None:
        self.full, self.only = False, ""

    def write(self, file: int, content: bytes) -> int:
        if self.full and self.only in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(file, content)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """The streams' disk. Rows are written by ``flush`` alone."""
    found = Disk()
    monkeypatch.setattr(streams, "write", found.write)
    yield found


def lenient(run: Path, **options: object) -> TraceWriter:
    return TraceWriter(run, {}, flush_seconds=3600.0, strict=False, **options)  # type: ignore[arg-type]


def said(call: Callable[[], object]) -> list[str]:
    """The warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught]


def test_a_full_disk_is_said_once_and_costs_nothing_once_there_is_room(tmp_path: Path, disk: Disk) -> None:
    writer = lenient(tmp_path / "run")
    disk.full = True
    first, *others = [said(lambda s=step: (writer.add("pairs", step_rows(s)), writer.flush())) for step in range(5)]
    assert others == [[]] * 4
    assert [text.split(";")[0] for text in first] == [
        f"cannot write {tmp_path}/run/streams/pairs-rank0.arrow: No space left on device"
    ]
    assert not writer.complete
    disk.full = False
    assert said(lambda: (writer.add("pairs", step_rows(5)), writer.flush())) == [] and writer.complete
    assert recorded_steps(tmp_path / "run") == list(range(6))
    assert said(writer.close) == []
    trace = load_trace(tmp_path / "run")
    assert trace.closed and trace.manifest["lost"] is None and recorded_steps(trace) == list(range(6))
    assert unwritten(trace) == []


def test_rows_that_no_longer_fit_into_memory_are_counted(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffer, "KEPT_BYTES", 5_000)
    writer = lenient(tmp_path / "run")
    writer.add("pairs", step_rows(0))
    writer.flush()
    disk.full = True
    with pytest.warns(RuntimeWarning, match="No space left"):
        writer.add("pairs", step_rows(1))
        writer.flush()
    for step in range(2, 150):
        writer.add("pairs", step_rows(step))
        writer.add("steps", [{"step": step}])
    assert writer._buffer._bytes <= 5_000
    disk.full = False
    with pytest.warns(RuntimeWarning, match="lacks rows that could not be written"):
        writer.close()
    trace = load_trace(tmp_path / "run")
    lost, kept = trace.manifest["lost"], recorded_steps(trace)
    assert kept == list(range(len(kept))) and 1 < len(kept) < 150
    assert lost["rows"] == {"pairs": 150 - len(kept), "steps": 148 - len(trace.steps)}
    assert lost["from_step"] == min(len(kept), 2 + len(trace.steps)) and "No space left" in lost["reason"]
    [verdict] = unwritten(trace)
    assert verdict.level == "warning" and [n.value for n in verdict.numbers] == list(lost["rows"].values())


def test_waiting_rows_are_joined_once(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is full, a step costs no more the longer it is: rows that wait are few batches, tried seldom."""
    writer = lenient(tmp_path / "run")
    disk.full = True
    with pytest.warns(RuntimeWarning, match="No space left"):
        for step in range(300):
            writer.add("pairs", step_rows(step))
            if step % 50 == 49:
                writer.flush()
                rows = sum(batch.num_rows for batch in writer._buffer._pending["pairs"])
                assert rows == step + 1 and len(writer._buffer._pending["pairs"]) <= 1 + rows // 200
    pending = writer._buffer._pending["pairs"]
    assert writer._buffer._bytes == sum(batch.nbytes for batch in pending)
    disk.full = False
    writer.close()
    assert recorded_steps(load_trace(tmp_path / "run")) == list(range(300))


def test_run_json_has_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a recording keeps free is given up for the last ``run.json``, which counts what is missing."""
    run = tmp_path / "run"
    writer = lenient(run)
    spare, real = run / "streams/spare", manifest._replace
    assert spare.stat().st_size == manifest.SPARE

    def no_room(path: Path, text: str) -> None:
        if spare.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, text)

    monkeypatch.setattr(manifest, "_replace", no_room)
    for earlier in range(2):
        writer.update_manifest(told=earlier)
        assert load_trace(run).manifest["told"] == earlier and spare.stat().st_size == manifest.SPARE
    writer.close("stopped", "told to")
    assert load_trace(run).manifest["reason"] == "told to" and not (run / "streams").exists()


def test_a_disk_that_stays_full_costs_the_rows_since_then(tmp_path: Path, disk: Disk) -> None:
    writer = lenient(tmp_path / "run")
    for step in range(3):
        writer.add("pairs", step_rows(step))
        writer.add("steps", [{"step": step}])
    writer.flush()
    disk.full, disk.only = True, "pairs"
    for step in range(3, 8):
        writer.add("pairs", step_rows(step))
        writer.add("steps", [{"step": step}])
    texts = said(writer.close)
    assert len(texts) == 2 and "pairs-rank0.arrow: No space left" in texts[0] and "(5 of pairs)" in texts[1]
    trace = load_trace(tmp_path / "run")
    assert recorded_steps(trace) == [0, 1, 2] and recorded_steps(trace, "steps") == list(range(8))
    assert trace.closed and trace.manifest["lost"]["rows"] == {"pairs": 5}
    assert trace.manifest["lost"]["from_step"] == 3 and not (tmp_path / "run/streams").exists()


def test_a_strict_writer_raises_and_keeps_the_rows(tmp_path: Path, disk: Disk) -> None:
    writer = TraceWriter(tmp_path / "run", {}, flush_seconds=0)
    disk.full = True
    for step in range(3):
        with pytest.raises(WriteFailed, match=r"cannot write .*pairs-rank0\.arrow: No space left on device$"):
            writer.add("pairs", step_rows(step))
    with pytest.raises(WriteFailed):
        writer.close()
    disk.full = False
    writer.close()
    assert recorded_steps(tmp_path / "run") == [0, 1, 2]


def test_a_strict_writer_that_an_error_ends_says_stopped_and_counts(tmp_path: Path, disk: Disk) -> None:
    with pytest.raises(WriteFailed) as raised, TraceWriter(tmp_path / "run", {}, flush_seconds=0) as writer:
        writer.add("pairs", step_rows(0))
        disk.full = True
        writer.add("pairs", step_rows(1))
    assert raised.value.exit_code == 1 and "could not be closed" in raised.value.__notes__[0]
    trace = load_trace(tmp_path / "run")
    assert trace.manifest["status"] == "stopped" and trace.manifest["reason"] == str(raised.value)
    assert recorded_steps(trace) == [0] and trace.manifest["lost"]["rows"] == {"pairs": 1}


def test_a_wrong_row_is_an_error_for_every_writer(tmp_path: Path) -> None:
    with lenient(tmp_path / "run") as writer, pytest.raises(TraceError, match="does not exist"):
        writer.add("pairs", [{"stepp": 1}])


@pytest.mark.parametrize("place", ["run", "run/streams", "run/streams/pairs-rank0.arrow", "run/run.json"])
def test_a_trace_that_is_removed_meanwhile_does_not_stop_training(tmp_path: Path, place: str) -> None:
    writer = lenient(tmp_path / "run")
    writer.add("pairs", step_rows(0))
    writer.flush()
    os.rename(tmp_path / place, tmp_path / "gone")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 4):
            writer.add("pairs", step_rows(step))
            writer.flush()
            writer.update_manifest(note=step)
        writer.close()
    texts = [str(one.message) for one in caught]
    assert sum("the training continues" in text for text in texts) == (place != "run/run.json") and len(texts) <= 2
    if place == "run/run.json":
        assert recorded_steps(tmp_path / "run") == [0, 1, 2, 3]


def test_run_json_that_cannot_be_written_is_written_later(tmp_path: Path) -> None:
    run = tmp_path / "run"
    writer = lenient(run)
    obstacle = run / "run.json.tmp"
    obstacle.mkdir()
    assert len(said(lambda: writer.update_manifest(note=1))) == 1
    assert said(lambda: writer.update_manifest(more=2)) == []
    assert "note" not in load_trace(run).manifest
    obstacle.rmdir()
    writer.update_manifest(last=3)
    assert [load_trace(run).manifest[name] for name in ("note", "more", "last")] == [1, 2, 3]
    writer.close()


def test_a_merge_that_fails_leaves_the_streams_and_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dyn_probe.trace import parquet

    def refuse(data: pa.Table, file: object, **_: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = tmp_path / "run"
    writer = lenient(run)
    writer.add("pairs", step_rows(0, 1))
    with monkeypatch.context() as patch:
        patch.setattr(parquet.pq, "write_table", refuse)
        [text] = said(writer.close)
    assert "not merged" in text and "pairs.parquet: No space left on device" in text
    assert sorted(path.name for path in run.iterdir()) == ["run.json", "streams"]
    trace = load_trace(run)
    assert trace.closed and "No space left" in trace.manifest["unmerged"] and recorded_steps(trace) == [0, 1]
    TraceWriter(run, {}, resume=True).close()  # merges what was left
    assert recorded_steps(run) == [0, 1] and not (run / "streams").exists()


def test_what_other_processes_lost_is_counted_too(tmp_path: Path, disk: Disk) -> None:
    run = tmp_path / "run"
    first, second = lenient(run), lenient(run, rank=1)
    disk.full, disk.only = True, "rank1"
    for writer in (first, second):
        writer.add("pairs", step_rows(3, 4))
    said(second.close)
    [text] = said(first.close)
    assert "(2 of pairs)" in text
    trace = load_trace(run)
    assert list(trace.pairs["rank"]) == [0, 0]
    assert trace.manifest["lost"] == {
        "rows": {"pairs": 2},
        "from_step": 3,
        "reason": f"cannot write {run}/streams/pairs-rank1.arrow: No space left on device",
    }
    assert not (run / "streams").exists()


@pytest.mark.parametrize(("step", "kept"), [(None, True), (5, True), (3, False), (2, False)])
def test_what_was_lost_stays_said_unless_it_is_recorded_again(
    tmp_path: Path, disk: Disk, step: int | None, kept: bool
) -> None:
    run = tmp_path / "run"
    writer = lenient(run)
    writer.add("pairs", step_rows(0, 1, 2))
    writer.flush()
    disk.full = True
    writer.add("pairs", step_rows(3, 4))
    said(writer.close)
    disk.full = False
    again = lenient(run, resume=True, resume_step=step)
    assert said(again.close) == ([f"the trace {run} lacks rows that could not be written (2 of pairs)"] if kept else [])
    assert bool(load_trace(run).manifest["lost"]) is kept


def test_marks_of_lost_rows_are_the_traces_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    lenient(run).close()
    (run / "streams").mkdir()
    (run / "streams/rank1.lost").write_text(json.dumps({"rows": 3}))
    (run / "streams/rank2.lost").write_text("[")
    TraceWriter(run, {}, force=True).close()
    assert sorted(path.name for path in run.iterdir()) == ["run.json"]
