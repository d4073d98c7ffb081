"""The rows of one table, wherever they lie: Parquet file, streams of all ranks, before and after resumes.

A Parquet file names the streams that are in it (metadata key ``dyn_probe``), so no row is read twice: not
after a crash between writing the file and removing the streams, and not when a closed trace is resumed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dyn_probe.errors import TraceError, WriteFailed
from dyn_probe.trace.layout import (
    STREAMS,
    StreamName,
    list_streams,
    parquet_file,
    read_manifest,
    scratch_file,
)
from dyn_probe.trace.rows import arrow_schema
from dyn_probe.trace.schema import SCHEMA_VERSION, TABLES, Table
from dyn_probe.trace.streams import read_stream

_KEY = b"dyn_probe"
_GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Rows:
    """Rows of one table, the streams they come from, and what of these could not be read."""

    data: pa.Table
    streams: tuple[str, ...] = ()
    torn: tuple[dict[str, Any], ...] = ()  # stream, and bytes behind its last whole batch
    segment: int = -1  # the last recording that the rows come from
    fresh: tuple[str, ...] = ()  # streams that are not yet in the Parquet file


def collect(run: Path, table: Table) -> Rows:
    """All rows of ``table``: by step, then recording and rank, else as recorded; nothing twice.

    Streams are read first, then ``run.json``, then the Parquet file. Whoever merges at the same time writes
    the Parquet file first and removes the streams last, so every row is met, and where it is met twice the
    Parquet file names its stream.
    """
    streams = {name: rows for name in list_streams(run) if name.table == table.name and (rows := _stream(run, name))}
    resumes = read_manifest(run).get("resumes", ())
    base = _parquet(run, table)
    fresh = [name for name in streams if name.file not in base.streams]
    parts = [_cut(base.data, resumes, base.segment)]
    parts += [_cut(_conform(streams[name][0], table, name.file), resumes, name.segment) for name in fresh]
    files = tuple(name.file for name in fresh)
    torn = tuple({"stream": name.file, "bytes": streams[name][1]} for name in fresh if streams[name][1])
    segment = max([base.segment, *(name.segment for name in fresh)])
    data = _unique(_sorted(pa.concat_tables(parts)), table)
    return Rows(data, (*base.streams, *files), (*base.torn, *torn), segment, files)


def _stream(run: Path, name: StreamName) -> tuple[pa.Table | None, int] | None:
    try:
        return read_stream(run / STREAMS / name.file)
    except FileNotFoundError:
        return None  # merged since the folder was listed: its rows are in the Parquet file


def _parquet(run: Path, table: Table) -> Rows:
    path = parquet_file(run, table.name)
    try:
        with pq.ParquetFile(path) as file:
            known = _described(file.schema_arrow.metadata)
            if known is None:
                raise TraceError(f"{path} was not written by dyn-probe: it names no streams; move it out of the trace")
            data = _conform(file.read(), table, path.name)
    except FileNotFoundError:
        return Rows(arrow_schema(table).empty_table())
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{path} cannot be read as Parquet: {error}") from error
    return Rows(data, tuple(known["streams"]), tuple(known["torn"]), known["segment"])


def is_own_parquet(path: Path) -> bool:
    """Whether dyn-probe wrote the file, as its metadata says."""
    try:
        return _described(pq.read_schema(path).metadata) is not None
    except (pa.ArrowException, OSError):
        return False


def _described(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any] | None:
    content = (metadata or {}).get(_KEY)
    return None if content is None else json.loads(content)


def _conform(data: pa.Table | None, table: Table, file: str) -> pa.Table:
    """The file's columns as the schema has them; columns that an older file lacks are null.

    Raises:
        TraceError: columns that the schema does not know, or whose type is another.
    """
    schema = arrow_schema(table)
    if data is None:
        return schema.empty_table()
    unknown = sorted(set(data.column_names) - set(table.names))
    if unknown:
        raise TraceError(
            f"{file} has columns that table {table.name!r} does not: {', '.join(unknown)}; "
            f"read it with the version of dyn-probe that wrote it"
        )
    columns = [
        data[column.name] if column.name in data.column_names else pa.nulls(len(data), column.type) for column in schema
    ]
    try:
        return pa.table(columns, names=list(table.names)).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise TraceError(f"{file} does not fit table {table.name!r}: {error}") from error


def _cut(data: pa.Table, resumes: Sequence[Mapping[str, Any]], segment: int) -> pa.Table:
    """Drop what a later resume recorded again: the rows of its step and after."""
    steps = [point["step"] for point in resumes if point["segment"] > segment and point["step"] is not None]
    if not steps or "step" not in data.column_names:
        return data
    return data.filter(pa.array(data["step"].to_numpy() < min(steps)))


def _sorted(data: pa.Table) -> pa.Table:
    if "step" not in data.column_names:
        return data
    steps = data["step"].to_numpy()
    if np.all(steps[1:] >= steps[:-1]):
        return data
    return data.take(pa.array(np.argsort(steps, kind="stable")))


def _unique(data: pa.Table, table: Table) -> pa.Table:
    """The first row for each value of the table's unique columns."""
    if not table.unique:
        return data
    first: dict[tuple[object, ...], int] = {}
    for number, key in enumerate(zip(*(data[name].to_pylist() for name in table.unique), strict=True)):
        first.setdefault(key, number)
    return data if len(first) == len(data) else data.take(pa.array(list(first.values()), pa.int64()))


def merge(run: Path) -> None:
    """Write every table that has streams to ``TABLE.parquet``. The streams stay.

    Raises:
        WriteFailed: a table could not be written; its streams are untouched.
    """
    for table in TABLES.values():
        rows = collect(run, table)
        if rows.fresh:
            _write_parquet(parquet_file(run, table.name), rows)


def _write_parquet(path: Path, rows: Rows) -> None:
    """Write under another name, make sure it is on disk and whole, then move it in place."""
    about = {
        "schema_version": SCHEMA_VERSION,
        "streams": rows.streams,
        "torn": rows.torn,
        "segment": rows.segment,
    }
    data = rows.data.replace_schema_metadata({_KEY: json.dumps(about)})
    group = max(1, min(2**20, len(data) * _GROUP_BYTES // max(1, data.nbytes)))
    try:
        with scratch_file(path).open("wb") as file:
            pq.write_table(data, file, compression="zstd", row_group_size=group)
            file.flush()
            os.fsync(file.fileno())
        written = pq.read_metadata(scratch_file(path)).num_rows
        if written != len(data):
            raise TraceError(f"wrote {written} of {len(data)} rows to {scratch_file(path)}")
        os.replace(scratch_file(path), path)
    except (pa.ArrowException, OSError) as error:
        with suppress(OSError):
            scratch_file(path).unlink(missing_ok=True)  # half a file on a full disk is in the way
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise WriteFailed(f"cannot write {path}: {why}; the streams beside it hold its rows") from error


def remove_merged_streams(run: Path) -> None:
    """Remove the streams whose rows are in Parquet; a torn one stays, since not all of it could be read."""
    merged = {file for table in TABLES.values() for file in _finished(parquet_file(run, table.name))}
    for name in list_streams(run):
        if name.file in merged:
            (run / STREAMS / name.file).unlink(missing_ok=True)


def _finished(path: Path) -> set[str]:
    known = _described(pq.read_schema(path).metadata) if path.exists() else None
    return set(known["streams"]) - {entry["stream"] for entry in known["torn"]} if known else set()
