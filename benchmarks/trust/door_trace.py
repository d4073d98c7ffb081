"""The doors of a trace: streams, Parquet files and ``run.json`` that are damaged, or that somebody made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from dyn_probe import load_trace
from dyn_probe.report.monitor.live_state import live_state
from dyn_probe.report.ranked import ranked_pairs
from dyn_probe.report.summary import summary_lines
from dyn_probe.trace.arrow_rows import arrow_schema
from dyn_probe.trace.parquet import Merged, write_parquet
from dyn_probe.trace.reader import Trace
from dyn_probe.trace.schema import TABLES
from dyn_probe.trace.streams import StreamFile
from dyn_probe.trace.writer import TraceWriter
from trust import noise
from trust.doors import attempt, command, new_tally
from trust.tally import Tally

ARRAYS: tuple[Callable[[int], pa.Array], ...] = (
    lambda n: pa.array([2**62] * n, pa.timestamp("s")),
    lambda n: pa.array([-(2**62)] * n, pa.timestamp("us", tz="UTC")),
    lambda n: pa.array([2**31 - 1] * n, pa.date32()),
    lambda n: pa.array([2**60] * n, pa.duration("s")),
    lambda n: pa.StringArray.from_buffers(n, pa.array([0] + [1] * n, pa.int32()).buffers()[1], pa.py_buffer(b"\xff")),
    lambda n: pa.array([b"\xff\xfe"] * n, pa.binary()),
    lambda n: pa.array([10**30] * n, pa.decimal128(38, 0)),
    lambda n: pa.array([2**64 - 1] * n, pa.uint64()),
    lambda n: pa.array([[[1.0]]] * n),
    lambda n: pa.array([{"a": 1}] * n),
    lambda n: pa.array([[None, float("nan")]] * n, pa.list_(pa.float64())),
    lambda n: pa.array(["x"] * n).dictionary_encode(),
    lambda n: pa.array([True] * n),
    lambda n: pa.nulls(n),
    lambda n: pa.array([float("inf")] * n),
    lambda n: pa.array([-(2**63)] * n, pa.int64()),
    lambda n: pa.array([noise.STEERING] * n),
)
"""Columns that no recorder writes."""


def base(folder: Path) -> Path:
    """A small recorded trace: closed Parquet files, and streams of a continuation beside them."""
    with TraceWriter(folder, {"objective": {"name": "dpo", "hyper": {"beta": 0.1}}, "config": {"steps": 6}}) as writer:
        for name in TABLES:
            writer.add(name, rows_of(name, range(4)))
    writer = TraceWriter(folder, {}, resume=True)
    for name in TABLES:
        writer.add(name, rows_of(name, range(4, 6)))
    writer._finalizer()
    return folder


def rows_of(table: str, steps: range) -> list[dict[str, Any]]:
    """Rows of a recorder that measured little: two pairs at each step."""
    numbers = {"int64": 1, "int32": 1, "float64": 0.25, "string": "text", "bool": True}
    found = []
    for step in steps:
        for pair in ("a", "b"):
            row: dict[str, Any] = {}
            for column in TABLES[table].columns:
                inner = column.type.removeprefix("list<").removesuffix(">")
                row[column.name] = [numbers[inner]] * 4 if inner != column.type else numbers[inner]
            row |= {name: pair for name in ("pair_id", "prompt_id") if name in row}
            row |= {"step": step} if "step" in row else {}
            row |= {"logp_chosen": -10.0 - step} if "logp_chosen" in row else {}
            found.append(row)
    return found


def look(trace: Trace, table: str, deep: bool) -> Any:
    """One table; ``deep``: what commands make of all of them."""
    found: Any = [trace.table(table), trace.about, trace.closed]
    if deep:
        found = [summary_lines(trace), ranked_pairs(trace), live_state(trace), trace.torn, trace.damage]
    return found


def table_of(file: Path) -> str:
    """The table that a file of a trace holds; ``steps`` for ``run.json``, which every table needs."""
    return next((name for name in TABLES if file.name.startswith((f"{name}.", f"{name}-"))), "steps")


def fuzz_files(folder: Path, count: int, seed: int = 0, deep_every: int = 20) -> Tally:
    """Bytes of any file of a trace are damaged."""
    tally, draw = new_tally("trace: damaged bytes of streams, Parquet files and run.json"), Random(seed)
    run = base(folder / "run")
    files = sorted(path for path in run.rglob("*") if path.is_file())
    for number in range(count):
        file = draw.choice(files)
        content = file.read_bytes()
        file.write_bytes(noise.damaged(content, draw))
        deep = number % deep_every == 0
        attempt(
            tally,
            f"{file.name}, case {number} of seed {seed}",
            lambda deep=deep, file=file: look(load_trace(run), table_of(file), deep),
        )
        file.write_bytes(content)
    return tally


def fuzz_manifest(folder: Path, count: int, seed: int = 0, deep_every: int = 10) -> Tally:
    """``run.json`` with a value that nobody expects at any place."""
    tally, draw = new_tally("trace: odd values anywhere in run.json"), Random(seed)
    run = base(folder / "run")
    file = run / "run.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    for number in range(count):
        content = noise.changed(whole, draw)
        if draw.random() < 0.3:
            content = noise.changed(content, draw) if isinstance(content, dict) and content else content
        file.write_bytes(noise.as_json(content))
        deep = number % deep_every == 0
        attempt(
            tally, f"run.json, case {number} of seed {seed}", lambda deep=deep: look(load_trace(run), "steps", deep)
        )
    return tally


def fuzz_tables(folder: Path, count: int, seed: int = 0, deep_every: int = 10) -> Tally:
    """Tables that somebody made, with sound checks: other types, names twice, values out of range."""
    tally, draw = new_tally("trace: tables made by others, with sound checks"), Random(seed)
    run = base(folder / "run")
    shutil.rmtree(run / "streams")
    for number in range(count):
        name = draw.choice(list(TABLES))
        file = run / f"{name}.parquet"
        before = file.read_bytes()
        if draw.random() < 0.7:
            made = lambda file=file, name=name: write_parquet(file, odd_table(name, draw), Merged())  # noqa: E731
        else:
            made = lambda name=name: odd_stream(run, name, draw)  # noqa: E731
        try:
            made()
        except Exception:  # a table that Arrow itself does not write
            continue
        deep = number % deep_every == 0
        attempt(
            tally,
            f"{name}, case {number} of seed {seed}",
            lambda deep=deep, name=name: look(load_trace(run), name, deep),
        )
        file.write_bytes(before)
        shutil.rmtree(run / "streams", ignore_errors=True)
    return tally


def odd_table(name: str, draw: Random) -> pa.Table:
    """A table of six rows, one to three columns of which are of another kind, are missing, or have another's name."""
    schema = arrow_schema(TABLES[name])
    table = pa.Table.from_pylist(rows_of(name, range(3)), schema=schema)
    names, columns = list(table.column_names), list(table.columns)
    for _ in range(draw.randrange(1, 4)):
        place, how = draw.randrange(len(columns)), draw.random()
        if how < 0.7:
            columns[place] = pa.chunked_array([draw.choice(ARRAYS)(len(table))])
        elif how < 0.85:
            names[place] = draw.choice([*names, *noise.TEXTS[:8]])
        elif len(columns) > 1:
            del names[place], columns[place]
    return pa.Table.from_arrays(columns, names=[one.encode("utf-8", "replace").decode() for one in names])


def odd_stream(run: Path, name: str, draw: Random) -> None:
    """The same as a stream of this trace, sealed."""
    table = odd_table(name, draw)
    (run / "streams").mkdir(exist_ok=True)
    stream = StreamFile(run / "streams" / f"{name}-rank0-seg9.arrow", table.schema)
    for batch in table.to_batches():
        stream.append(batch)
    stream.close()


def fuzz_commands(folder: Path, count: int, seed: int = 0) -> Tally:
    """The commands that read a trace, over damaged ones."""
    tally, draw = new_tally("trace: commands over damaged traces"), Random(seed)
    run = base(folder / "run")
    files = sorted(path for path in run.rglob("*") if path.is_file())
    forms = (
        ["summary", str(run)], ["pairs", str(run)], ["pairs", str(run), "--format", "csv"],
        ["pairs", str(run), "--format", "json"], ["check", str(run), "--max-fall", "1"],
        ["heatmap", str(run), "--force"],
        ["export", str(run), "--to", "csv", "--force"], ["export", str(run), "--to", "json", "--force"],
    )  # fmt: skip
    for number in range(count):
        file, form = draw.choice(files), draw.choice(forms)
        content = file.read_bytes()
        file.write_bytes(noise.damaged(content, draw))
        command(tally, f"{' '.join(form[:1] + form[2:])} with {file.name}, case {number} of seed {seed}", form)
        file.write_bytes(content)
    return tally
