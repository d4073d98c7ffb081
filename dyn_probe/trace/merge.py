"""The rows of one table, wherever they are: Parquet file, streams of all ranks, before and after resumes.

A Parquet file lists the streams that it contains (metadata key ``dyn_probe``), so no row is read twice, neither
after a crash between writing the file and removing the streams, nor when a closed trace is resumed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from dyn_probe.errors import TraceError, on_one_line
from dyn_probe.trace.arrow_rows import arrow_schema, row_size
from dyn_probe.trace.damage import Damage, refuse_large
from dyn_probe.trace.failures import naming
from dyn_probe.trace.manifest import read_manifest, typed
from dyn_probe.trace.parquet import (
    FileRows,
    Merged,
    Torn,
    check_of,
    is_as_closed,
    read_merged,
    read_parquet,
    write_parquet,
)
from dyn_probe.trace.run_fields import Manifest, Resume
from dyn_probe.trace.run_folder import STREAMS, StreamName, list_streams, parquet_file, refuse_link_out
from dyn_probe.trace.schema import TABLES, Table
from dyn_probe.trace.selection import EVERYTHING, STEP, Selection, Steps
from dyn_probe.trace.streams import StreamRows, read_stream

CHANGED = "its digest is another than run.json names, so that it was changed or replaced after the run was closed"


@dataclass(frozen=True)
class TableRows:
    """Rows of one table, where they come from, and what of it could not be read."""

    data: pa.Table
    about: Merged
    fresh: tuple[str, ...] = ()  # streams that are not yet in the Parquet file
    spoilt: bool = False  # whether parts of the Parquet file are damaged


def collect(run: Path, table: Table, wanted: Selection = EVERYTHING) -> TableRows:
    """Rows of ``table``: by step, then recording and rank, else as recorded; nothing twice.

    Streams are read first, then ``run.json``, then the Parquet file. A process that merges at the same time writes
    the Parquet file first and removes the streams last, so every row is found, and if it is found twice the
    Parquet file lists its stream.
    """
    streams = {name: rows for name in list_streams(run) if name.table == table.name and (rows := _stream(run, name))}
    manifest = typed(read_manifest(run))
    base = _parquet(run, table, manifest, wanted)
    about, fresh = base.about, [name for name in streams if name.file not in base.about.streams]
    parts = [_cut(base.data, manifest.resumes, about.segment)]
    names = wanted.read(table)
    for name in fresh:
        parts.append(_cut(_conform(streams[name].data, table, name.file, names), manifest.resumes, name.segment))
    files = tuple(name.file for name in fresh)
    found = Merged(
        streams=(*about.streams, *files),
        torn=(*about.torn, *(Torn(name.file, streams[name].torn) for name in fresh if streams[name].torn)),
        damage=(*about.damage, *base.damage, *(one for name in fresh for one in streams[name].damage)),
        segment=max([about.segment, *(name.segment for name in fresh)]),
    )
    data = pa.concat_tables([_chosen(part, wanted.steps) for part in parts])
    return TableRows(_unique(_sorted(data), table), found, files, bool(base.damage))


def _stream(run: Path, name: StreamName) -> StreamRows | None:
    path = run / STREAMS / name.file
    try:
        return read_stream(_inside(run, path), TABLES[name.table])
    except FileNotFoundError:
        return None  # merged since the folder was listed: its rows are in the Parquet file
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from error


def _parquet(run: Path, table: Table, manifest: Manifest, wanted: Selection) -> FileRows:
    path = parquet_file(run, table.name)
    columns = wanted.read(table)
    try:
        older = [alias for alias, name in table.aliases.items() if columns and name in columns]
        found = read_parquet(_inside(run, path), table, columns and [*columns, *older], wanted.steps)
        if columns is None and not found.damage and _was_changed(run, path, manifest):
            found = replace(found, damage=(Damage(path.name, CHANGED, 0),))
    except FileNotFoundError:
        return FileRows(_conform(None, table, path.name, columns), Merged())
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from error
    return replace(found, data=_conform(found.data, table, path.name, columns))


def _was_changed(run: Path, path: Path, manifest: Manifest) -> bool:
    """Whether a file has another digest than ``run.json`` names, of a trace that nobody goes on with meanwhile."""
    check = manifest.files.get(path.name)
    if check is None or manifest.status == "recording" or is_as_closed(path, check):
        return False
    return typed(read_manifest(run)) == manifest


def _inside(run: Path, path: Path) -> Path:
    """The path, which must be a file and not lead out of the trace's folder."""
    refuse_link_out(run, path)
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise TraceError(f"wanted a file of the trace; {path} is none; move it out of the trace's folder")
    return path


def is_own_parquet(path: Path) -> bool:
    """Whether dyn-probe wrote the file, as its metadata says."""
    return read_merged(path) is not None


def _conform(data: pa.Table | None, table: Table, file: str, names: Sequence[str] | None) -> pa.Table:
    """The file's columns as the schema has them; columns that an older file lacks are null.

    Args:
        names: columns that are wanted; None for all.

    Raises:
        TraceError: columns that the schema does not know, or whose type is another.
    """
    schema = arrow_schema(table)
    schema = schema if names is None else pa.schema([schema.field(name) for name in names])
    if data is None:
        return schema.empty_table()
    data = data.rename_columns([table.aliases.get(name, name) for name in data.column_names])
    unknown = sorted(set(data.column_names) - set(table.names))
    if unknown or len(set(data.column_names)) < len(data.column_names):
        named = ", ".join(on_one_line(name, 60) for name in unknown[:5]) + (", …" if len(unknown) > 5 else "")
        raise TraceError(
            f"{file} has columns that table {table.name!r} does not have: {named or 'one of them twice'}; "
            f"read it with the version of dyn-probe that wrote it"
        )
    refuse_large(f"{file}: {len(data):,} rows", len(data) * row_size(schema))
    columns = [
        data[column.name] if column.name in data.column_names else pa.nulls(len(data), column.type) for column in schema
    ]
    try:
        return pa.table(columns, names=schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise TraceError(f"{file} does not fit table {table.name!r}: {on_one_line(error)}") from error


def _cut(data: pa.Table, resumes: Sequence[Resume], segment: int) -> pa.Table:
    """Drop what a later resume recorded again: the rows of its step and after."""
    steps = [point.step for point in resumes if point.segment > segment and point.step is not None]
    return _chosen(data, Steps(high=min(steps) - 1)) if steps else data


def _chosen(data: pa.Table, steps: Steps | None) -> pa.Table:
    if steps is None or STEP not in data.column_names:
        return data
    return data.filter(pa.array(steps.mask(data[STEP].to_numpy())))


def _sorted(data: pa.Table) -> pa.Table:
    if STEP not in data.column_names:
        return data
    steps = data[STEP].to_numpy()
    if np.all(steps[1:] >= steps[:-1]):
        return data
    return data.take(pa.array(np.argsort(steps, kind="stable")))


def _unique(data: pa.Table, table: Table) -> pa.Table:
    """One row for each value of the table's unique columns: the first, or the latest."""
    if not table.unique:
        return data
    kept: dict[tuple[object, ...], int] = {}
    for number, key in enumerate(zip(*(data[name].to_pylist() for name in table.unique), strict=True)):
        kept[key] = number if table.latest else kept.get(key, number)
    return data if len(kept) == len(data) else data.take(pa.array(list(kept.values()), pa.int64()))


def merge(run: Path) -> dict[str, object]:
    """Write every table that has streams to ``TABLE.parquet``. The streams stay.

    Returns:
        Parquet file → what ``run.json`` says of it.

    Raises:
        TraceError: a table could not be read or written; its streams are untouched.
    """
    for table in TABLES.values():
        rows = collect(run, table)
        if rows.fresh and rows.spoilt:
            _put_aside(parquet_file(run, table.name))
        if rows.fresh:
            write_parquet(parquet_file(run, table.name), rows.data, rows.about)
    paths = [path for table in TABLES if (path := parquet_file(run, table)).exists()]
    return {path.name: vars(check_of(path)) for path in paths}


def _put_aside(path: Path) -> None:
    """Keep a copy of a damaged file that is about to be replaced by what could be read of it."""
    aside = path.with_name(path.name + ".damaged")
    with naming(aside):
        aside.unlink(missing_ok=True)
        shutil.copyfile(path, aside)


def remove_merged_streams(run: Path) -> None:
    """Remove the streams whose rows are in Parquet; one that is torn or damaged stays: not all of it was read."""
    merged = {file for table in TABLES.values() for file in _finished(parquet_file(run, table.name))}
    for name in list_streams(run):
        if name.file in merged:
            (run / STREAMS / name.file).unlink(missing_ok=True)


def _finished(path: Path) -> set[str]:
    known = read_merged(path) if path.exists() else None
    if known is None:
        return set()
    kept = {one.stream for one in known.torn} | {one.file.rpartition("/")[2] for one in known.damage}
    return set(known.streams) - kept
