"""What a trace folder may overwrite, what ``run.json`` says, and what is refused as no trace."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trace_samples import recorded_steps, sample_rows, step_rows

from dyn_probe.errors import TraceError
from dyn_probe.trace.arrow_rows import arrow_schema
from dyn_probe.trace.docs import schema_markdown
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.run_fields import OWN, Manifest
from dyn_probe.trace.schema import CASES, PAIRS, SCHEMA_VERSION, TABLES
from dyn_probe.trace.typed import described
from dyn_probe.trace.writer import TraceWriter


def _tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def _record(run: Path, *steps: int) -> None:
    with TraceWriter(run, {}) as writer:
        writer.add("pairs", step_rows(*steps))


def test_an_empty_folder_and_missing_parents_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _record(tmp_path / "empty", 1)
    _record(tmp_path / "a/b/c", 2)
    assert recorded_steps(tmp_path / "empty") + recorded_steps(tmp_path / "a/b/c") == [1, 2]


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    run, notes = tmp_path / "run", tmp_path / "notes"
    _record(run, 1)
    notes.mkdir()
    (notes / "todo.txt").write_text("buy milk")
    (tmp_path / "file").write_text("x")
    before = _tree(tmp_path)
    for path, wanted in ((run, "holds a trace"), (notes, "is not empty"), (tmp_path / "file", "is a file")):
        with pytest.raises(TraceError, match=wanted):
            TraceWriter(path, {})
    assert _tree(tmp_path) == before


def _no_trace(folder: Path) -> None:
    (folder / "pairs.parquet").write_text("mine")


def _foreign_json(folder: Path) -> None:
    (folder / "run.json").write_text('{"status": "ok", "schema_version": "1"}')


def _broken_json(folder: Path) -> None:
    (folder / "run.json").write_text('{"schema_version": 1,')


def _newer(folder: Path) -> None:
    _record(folder, 1)
    manifest = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**manifest, "schema_version": SCHEMA_VERSION + 1}))


def _foreign_table(folder: Path) -> None:
    _record(folder, 1)
    pq.write_table(pa.table({"step": [1]}), folder / "steps.parquet")


def _linked_streams(folder: Path) -> None:
    _record(folder, 1)
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "pairs-rank0.arrow").write_text("mine")
    (folder / "streams").symlink_to(elsewhere)


@pytest.mark.parametrize("make", [_no_trace, _foreign_json, _broken_json, _newer, _foreign_table, _linked_streams])
def test_force_never_deletes_what_is_no_trace(tmp_path: Path, make: object) -> None:
    run = tmp_path / "run"
    run.mkdir()
    make(run)  # type: ignore[operator]
    before = _tree(tmp_path)
    with pytest.raises(TraceError, match=r"is not (removed|overwritten)"):
        TraceWriter(run, {}, force=True)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_force_replaces_a_trace_and_leaves_files_beside_it(tmp_path: Path, end: str) -> None:
    run = tmp_path / "run"
    writer = TraceWriter(run, {"note": "old"})
    for table in TABLES.values():
        writer.add(table.name, sample_rows(table, 3))
    writer.close() if end == "closed" else writer._finalizer()
    (run / "streams").mkdir(exist_ok=True)
    users = [
        "notes.md",
        "report/report.html",
        "pairs.parquet.bak",
        "streams/mine.arrow",
        "streams/pairs-rank0.txt",
    ]
    for name in users:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    (run / "mass.parquet.tmp").write_text("left by a crash")
    TraceWriter(run, {"note": "new"}, force=True).close()
    assert {name for name, content in _tree(run).items() if content is not None} == {*users, "run.json"}
    trace = load_trace(run)
    assert trace.manifest["note"] == "new"
    assert all(trace.table(name).empty for name in TABLES)


def test_force_takes_a_folder_that_is_new_or_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        TraceWriter(tmp_path / name, {}, force=True).close()
        assert load_trace(tmp_path / name).closed


def test_run_json_has_the_fields_it_promises(tmp_path: Path) -> None:
    config = {
        "lr": np.float32(0.5),
        "out": tmp_path,
        "names": ("a", "b"),
        "steps": np.arange(2),
        "x": float("nan"),
    }
    writer = TraceWriter(tmp_path / "run", {"config": config, "note": "ä\udc80"})
    live = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))
    assert set(live) == {*OWN, "config", "note"}
    assert (live["status"], live["closed"], live["schema_version"]) == ("recording", None, SCHEMA_VERSION)
    assert live["config"] == {
        "lr": 0.5,
        "out": str(tmp_path),
        "names": ["a", "b"],
        "steps": [0, 1],
        "x": None,
    }
    writer.update_manifest(note=1, certificate={"max_relative_error": 1e-7, "tolerance": float("inf")})
    writer.close("stopped", "enough")
    done = load_trace(tmp_path / "run").manifest
    assert (done["status"], done["reason"], done["config"]) == ("stopped", "enough", live["config"])
    assert done["certificate"] == {"max_relative_error": 1e-7, "tolerance": "inf"}
    assert done["created"] == live["created"] <= done["closed"]
    assert (live["note"], done["note"]) == ("ä\udc80", 1)


def test_fields_that_run_json_cannot_hold_are_refused(tmp_path: Path) -> None:
    _record(tmp_path / "old", 1)
    before = _tree(tmp_path)
    with pytest.raises(TraceError, match=r"config\.model = <object .*, config\.list\[1\] = b'x' \(bytes\)"):
        TraceWriter(tmp_path / "old", {"config": {"model": object(), "list": [1, b"x"]}}, force=True)
    with pytest.raises(TraceError, match="fills itself: status, created"):
        TraceWriter(tmp_path / "old", {"status": "fine", "created": "today", "a": 1}, force=True)
    assert _tree(tmp_path) == before
    with TraceWriter(tmp_path / "run", {}) as writer:
        with pytest.raises(TraceError, match="fills itself: resumes"):
            writer.update_manifest(resumes=[])
        with pytest.raises(TraceError, match="status closed or stopped; got 'done'"):
            writer.close("done")


def test_a_closed_writer_takes_nothing_more(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "run", {})
    writer.close()
    writer.close("stopped", "too late")
    assert load_trace(tmp_path / "run").manifest["status"] == "closed"
    for call in (
        lambda: writer.add("pairs", step_rows(0)),
        writer.flush,
        lambda: writer.update_manifest(a=1),
    ):
        with pytest.raises(TraceError, match="is closed"):
            call()


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda folder: folder.rmdir(), "does not exist"),
        (lambda folder: (folder.rmdir(), folder.write_text("x")), "is a file"),
        (lambda folder: None, r"has no run\.json"),
        (_no_trace, r"has no run\.json"),
        (_broken_json, "cannot be read as JSON"),
        (lambda folder: (folder / "run.json").write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
        (lambda folder: (folder / "run.json").write_text("[1]"), "is not that of a trace"),
        (_foreign_json, "is not that of a trace"),
        (
            _newer,
            f"schema_version {SCHEMA_VERSION + 1}, but this version reads up to {SCHEMA_VERSION}; install",
        ),
    ],
)
def test_what_is_no_trace_is_a_clear_error(tmp_path: Path, make: object, wanted: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    make(run)  # type: ignore[operator]
    with pytest.raises(TraceError, match=wanted):
        load_trace(str(run))


def test_tables_that_are_none_of_ours_are_a_clear_error(tmp_path: Path) -> None:
    _record(tmp_path / "run", 1)
    path = tmp_path / "run/pairs.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TraceError, match="cannot be read as Parquet"):
        _ = load_trace(tmp_path / "run").pairs
    _foreign_table(tmp_path / "other")
    with pytest.raises(TraceError, match="was not written by dyn-probe"):
        _ = load_trace(tmp_path / "other").steps


def test_a_stream_of_another_type_is_a_clear_error(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "run", {})
    for table in (
        pa.table({"step": ["a"]}),
        pa.table({"step": pa.array([None], pa.int64())}),
        pa.table({"loss": [1.0]}),
    ):
        with pa.ipc.new_stream(tmp_path / "run/streams/pairs-rank0.arrow", table.schema) as stream:
            stream.write_table(table)
        with pytest.raises(TraceError, match="does not fit table 'pairs'"):
            _ = load_trace(tmp_path / "run").pairs
    writer._finalizer()


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    fired = tmp_path / "fired"
    content = pickle.dumps(_Bomb(fired))
    pickle.loads(content)
    assert fired.exists()  # the bomb works
    fired.unlink()
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": content}
    schema = arrow_schema(PAIRS)
    place = schema.get_field_index("case_plain")
    armed = schema.set(place, schema.field(place).with_metadata(extension)).with_metadata({b"pandas": content})
    writer = TraceWriter(tmp_path / "run", {})
    with pa.ipc.new_stream(tmp_path / "run/streams/pairs-rank0.arrow", armed) as stream:
        stream.write_table(armed.empty_table())
    assert load_trace(tmp_path / "run").pairs.empty
    writer.close()
    assert load_trace(tmp_path / "run").pairs.empty
    assert not fired.exists()


def test_reading_a_trace_does_not_import_torch(tmp_path: Path) -> None:
    _record(tmp_path / "run", 1, 2)
    script = (
        "import sys; from dyn_probe import load_trace; trace = load_trace(sys.argv[1])\n"
        "import dyn_probe.trace.writer, dyn_probe.trace.docs\n"
        "print(len(trace.pairs), len(trace.mass), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == [
        "2",
        "0",
        "False",
    ]


def test_the_markdown_names_everything() -> None:
    command = [sys.executable, "-m", "dyn_probe.trace.schema"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text.rstrip("\n") == schema_markdown().rstrip("\n")
    lines = text.splitlines()
    for table in TABLES.values():
        start = lines.index(f"## {table.name}")
        assert table.row in lines[start + 2]
        section = lines[start + 4 : start + 6 + len(table.columns)]
        assert section[0] == "| column | type | unit | meaning |"
        for line, column in zip(section[2:], table.columns, strict=True):
            cells = [cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")]
            assert cells[0] == f"`{column.name}`"
            assert cells[1] == column.type + ", required" * column.required
            assert cells[2:] == [column.unit, column.meaning.replace("|", "¦")]
    assert all(f"| `{one.place}` | {one.kind} | {one.meaning} | " in text for one in described(Manifest))
    assert all(f"| {number} | {meaning} |" in text for number, meaning in CASES.items())


def test_a_file_carries_units_and_meanings(tmp_path: Path) -> None:
    _record(tmp_path / "run", 1)
    schema = pq.read_schema(tmp_path / "run/pairs.parquet")
    for column in PAIRS.columns:
        described = schema.field(column.name).metadata
        assert described[b"unit"].decode() == column.unit
        assert described[b"meaning"].decode() == column.meaning
