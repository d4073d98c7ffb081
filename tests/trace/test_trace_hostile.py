"""A trace that is not what it says ends in one clear message: no traceback, no waiting, nothing run."""

from __future__ import annotations

import json
import os
import random
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from dyn_probe_cli.app import main
from trace_samples import as_values, sample_rows, step_rows

from dyn_probe.errors import BadInput, DynProbeError, TraceError
from dyn_probe.report.build import build_report
from dyn_probe.report.frames import numbers
from dyn_probe.report.ranked import ranked_pairs
from dyn_probe.report.summary import summary_lines
from dyn_probe.report.unfit import naming_runs
from dyn_probe.trace.parquet import Merged, write_parquet
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.schema import SCHEMA_VERSION, TABLES, Column
from dyn_probe.trace.writer import TraceWriter

EVIL = '\x1b[2J\x1b]0;owned\x07<script>alert("x")</script>\u202e[bold]\r\n\t\x00'
LONG = EVIL * 20_000
MESSAGE = 1500
"""Characters that a message has at most, paths of this test included."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A closed trace of a few rows in every table, with streams of a later recording beside it."""
    folder = tmp_path / "run"
    with TraceWriter(folder, {}) as writer:
        for table in TABLES.values():
            writer.add(table.name, sample_rows(table, 5))
    writer = TraceWriter(folder, {}, resume=True)
    writer.add("pairs", step_rows(7, 8))
    writer._finalizer()
    return folder


def read_all(run: Path) -> None:
    """Read every table."""
    trace = load_trace(run)
    for name in TABLES:
        trace.table(name)


def is_clear(message: str) -> bool:
    """Whether a message is one line, short, and has nothing in it that steers a terminal."""
    return message.isprintable() and 20 < len(message) < MESSAGE


def replaced_by_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_link(path: Path) -> None:
    other = path.parent.parent / "elsewhere"
    path.rename(other)
    path.symlink_to(other)


def streams_as_file(run: Path) -> None:
    for stream in (run / "streams").iterdir():
        stream.unlink()
    (run / "streams").rmdir()
    (run / "streams").write_text("x")


def with_fields(run: Path, **fields: Any) -> None:
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(content | fields), encoding="utf-8")


def with_table(run: Path, **columns: Any) -> None:
    """``pairs.parquet`` with other columns, and sound checks."""
    write_parquet(run / "pairs.parquet", pa.table(columns), Merged())


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "run.json is a folder": (lambda run: replaced_by_folder(run / "run.json"), r"run\.json is not a file"),
    "run.json is a pipe": (lambda run: replaced_by_pipe(run / "run.json"), r"run\.json is not a file"),
    "run.json is elsewhere": (lambda run: replaced_by_link(run / "run.json"), "leads out of the trace's folder"),
    "a table is elsewhere": (lambda run: replaced_by_link(run / "mass.parquet"), "leads out of the trace's folder"),
    "run.json is cut": (lambda run: os.truncate(run / "run.json", 100), r"run\.json cannot be read as JSON"),
    "run.json is empty": (lambda run: os.truncate(run / "run.json", 0), r"run\.json cannot be read as JSON"),
    "a table is a folder": (lambda run: replaced_by_folder(run / "pairs.parquet"), "wanted a file of the trace"),
    "a table is a pipe": (lambda run: replaced_by_pipe(run / "mass.parquet"), r"mass\.parquet is none"),
    "a stream is a pipe": (
        lambda run: replaced_by_pipe(run / "streams/mass-rank0.arrow"),
        "wanted a file of the trace",
    ),
    "streams is a file": (streams_as_file, "wanted a folder of streams"),
    "a table is empty": (lambda run: os.truncate(run / "pairs.parquet", 0), "does not end as a Parquet file"),
    "a table is another": (
        lambda run: (run / "pairs.parquet").write_bytes((run / "mass.parquet").read_bytes()),
        r"pairs\.parquet has columns that table 'pairs' does not have: ",
    ),
    "steps are texts": (lambda run: with_table(run, step=["a"]), "does not fit table 'pairs'"),
    "steps are fractions": (lambda run: with_table(run, step=[0.5]), "does not fit table 'pairs'"),
    "steps are missing": (lambda run: with_table(run, loss=[0.5]), "does not fit table 'pairs'"),
    "numbers are lists": (lambda run: with_table(run, step=[1], loss=[[1.0]]), "does not fit table 'pairs'"),
    "numbers are texts": (lambda run: with_table(run, step=[1], loss=[LONG]), "does not fit table 'pairs'"),
    "texts are mappings": (lambda run: with_table(run, step=[1], pair_id=[{"a": 1}]), "does not fit table 'pairs'"),
    "a column's name is long": (lambda run: with_table(run, **{LONG: [1]}), "does not have: "),
    "very many columns": (lambda run: with_table(run, **{f"c{n}": [1] for n in range(900)}), r"c101, …; read it with"),
    "a version is long": (
        lambda run: with_fields(run, schema_version=SCHEMA_VERSION + 1, dyn_probe_version=LONG),
        "install the dyn-probe that wrote it",
    ),
    "a field is long": (lambda run: with_fields(run, created=[LONG]), "created: wanted text or null, came"),
    "a status is long": (lambda run: with_fields(run, status=LONG), "status: wanted one of recording, closed, stopped"),
}


@pytest.mark.parametrize(("make", "wanted"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_is_no_trace_ends_in_one_message(run: Path, make: Callable[[Path], object], wanted: str) -> None:
    make(run)
    with pytest.raises(TraceError, match=wanted) as raised:
        read_all(run)
    assert is_clear(str(raised.value)), str(raised.value)


@pytest.mark.parametrize("command", ["summary", "pairs", "report", "heatmap"])
@pytest.mark.parametrize("make", ["empty folder", "long name", "numbers are texts"])
def test_commands_say_it_in_one_line(
    run: Path, make: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"empty folder": run.parent / "nothing", "long name": run.parent / ("x" * 5000)}
    place = places.get(make, run)
    if make == "empty folder":
        place.mkdir()
    elif place == run:
        FOLDERS[make][0](run)
        (run / "tokens.parquet").write_bytes((run / "pairs.parquet").read_bytes())
    monkeypatch.setattr(sys, "argv", ["dyn-probe", command, str(place)])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert left.value.code in (1, 2) and said.out == ""
    assert said.err.startswith("dyn-probe: ") and said.err.count("\n") == 1


def test_a_file_cut_anywhere_is_refused_or_read_up_to_there(run: Path) -> None:
    whole = {name: as_values(load_trace(run).table(name)) for name in ("pairs", "mass")}
    seen = set()
    for file in (run / "mass.parquet", run / "streams/pairs-rank0-seg1.arrow"):
        content, table = file.read_bytes(), "mass" if file.suffix == ".parquet" else "pairs"
        for size in sorted(random.Random(0).sample(range(len(content)), 60)):
            file.write_bytes(content[:size])
            trace = load_trace(run)
            try:
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    found = as_values(trace.table(table))
            except TraceError as error:
                assert file.name in str(error) and is_clear(str(error))
                seen.add("refused")
                continue
            assert found == whole[table][: len(found)] and len(found) < len(whole[table])
            assert said or trace.torn or size == 0
            seen.add("torn")
        file.write_bytes(content)
    assert seen == {"refused", "torn"}


def test_noise_in_place_of_a_file_is_refused(run: Path) -> None:
    draw = random.Random(0)
    for file in (run / "pairs.parquet", run / "streams/pairs-rank0-seg1.arrow"):
        content = file.read_bytes()
        for _ in range(60):
            noise = draw.randbytes(draw.randrange(400))
            head, tail = draw.choice(
                [(b"", b""), (content[:200], b""), (content[:4], content[-8:]), (b"", content[-60:])]
            )
            file.write_bytes(head + noise + tail)
            with warnings.catch_warnings(record=True):
                warnings.simplefilter("always")
                trace = load_trace(run)
                try:
                    found = trace.pairs
                except TraceError as error:
                    assert file.name in str(error) and is_clear(str(error))
                    continue
            assert len(found) == 5 and (trace.torn or trace.damage or not head + noise + tail)
        file.write_bytes(content)


BY_TYPE: dict[str, dict[str, Any]] = {
    "not finite": {"float64": np.inf, "list<float64>": [np.inf]},
    "largest": {"float64": 1.7e308, "int32": 2**31 - 1},
    "below zero": {"float64": -1e-300, "int32": -1, "int64": -(2**62)},
    "empty": {"string": "", "float64": 0.0, "int32": 0, "list<float64>": [], "list<string>": []},
    "texts": {"string": EVIL, "list<string>": [EVIL]},
}
"""What stands in every column of a type."""

UNLIKELY: dict[str, Callable[[Column, object], object]] = {
    "noise": lambda column, value: value,
    "null": lambda column, value: value if column.required else None,
    **{kind: partial(lambda by, column, value: by.get(column.type, value), by) for kind, by in BY_TYPE.items()},
}


def unlikely(kind: str) -> dict[str, list[dict[str, Any]]]:
    """Rows that every column's type allows and no recorder writes."""
    return {
        table.name: [
            {column.name: UNLIKELY[kind](column, row[column.name]) for column in table.columns}
            for row in sample_rows(table, 30, holes=kind == "noise")
        ]
        for table in TABLES.values()
    }


def recorded(folder: Path, kind: str) -> Path:
    """A closed trace of unlikely rows, whose ``run.json`` is no better."""
    with TraceWriter(folder, {"note": EVIL, "command": EVIL, "model": {"name": "\udc80"}}) as writer:
        for name, rows in unlikely(kind).items():
            writer.add(name, rows)
    return folder


def made(door: Callable[[], Any]) -> Any:
    """What a door makes; None where it refuses, clearly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return door()
        except DynProbeError as error:
            assert is_clear(str(error)), str(error)
            return None


@pytest.mark.parametrize("kind", UNLIKELY)
def test_values_that_no_recorder_writes_end_in_a_message_or_lines(kind: str, tmp_path: Path) -> None:
    trace = load_trace(recorded(tmp_path / "run", kind))
    lines = made(lambda: summary_lines(trace))
    assert lines is None or all(line.isprintable() for line in lines)
    ranked = made(lambda: ranked_pairs(trace))
    assert ranked is None or set(ranked["pair_id"]) <= set(trace.pairs["pair_id"].dropna())


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNLIKELY)
def test_a_report_of_them_is_a_message_or_a_page_with_nothing_to_run(kind: str, tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", kind)
    page = made(lambda: build_report([run], out=tmp_path / "report"))
    if page is not None:
        text = page.read_text(encoding="utf-8")
        assert "<script>alert" not in text and "&lt;script&gt;alert" in text
        assert json.loads((tmp_path / "report/report.json").read_text(encoding="utf-8"))["files"]


@pytest.mark.slow
def test_so_is_a_comparison(tmp_path: Path) -> None:
    runs = [recorded(tmp_path / "a", "noise"), recorded(tmp_path / "b", "texts")]
    page = made(lambda: build_report(runs, out=tmp_path / "two"))
    assert page is None or "<script>alert" not in page.read_text(encoding="utf-8")


def test_the_error_names_the_run_and_the_place_and_keeps_its_cause(tmp_path: Path) -> None:
    wanted = r"run: the tables hold .* AttributeError in report/frames\.py, numbers: "
    with pytest.raises(TraceError, match=wanted) as raised, naming_runs([tmp_path / "run"]):
        numbers({"loss": None}, "loss")  # type: ignore[arg-type]
    assert isinstance(raised.value.__cause__, AttributeError)
    with pytest.raises(BadInput, match=r"^mine$"), naming_runs([tmp_path]):
        raise BadInput("mine")


def test_long_texts_are_cut_where_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with TraceWriter(tmp_path / "run", {"command": LONG}) as writer:
        writer.add("pairs", step_rows(0, 1))
        writer.add("examples", [{"pair_id": "pair 0", "prompt": LONG, "chosen": LONG, "rejected": LONG}])
    for command, *options in (["summary"], ["pairs", "--by", "loss"]):
        monkeypatch.setattr(sys, "argv", ["dyn-probe", command, str(tmp_path / "run"), *options])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        assert left.value.code == 0 and len(said.out) < 10_000, command
        assert all(one.isprintable() or one == "\n" for one in said.out)
    assert len(load_trace(tmp_path / "run").examples["prompt"].iloc[0]) == len(LONG)


def test_a_heat_map_stays_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"step": 0, "pair_id": "../../../" + EVIL, "side": "chosen_rejected", "inner": [0.5], "cosine": [0.5]}
    with TraceWriter(tmp_path / "a/b/run", {}) as writer:
        writer.add("tokens", [row | {"tokens_rows": [EVIL], "tokens_columns": [EVIL]}])
    before = set(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["dyn-probe", "heatmap", str(tmp_path / "a/b/run")])
    with pytest.raises(SystemExit) as left:
        main()
    [drawn] = set(tmp_path.rglob("*")) - before
    assert left.value.code == 0 and drawn.parent == tmp_path / "a/b/run" and drawn.name.isprintable()
