"""The Parquet file of a closed table: written with checks, and of it only read what they bear out.

Every page has the format's own CRC-32, every column chunk and the footer have ours (``checks``), and the whole file a
SHA-256 digest in ``run.json``. The file names the streams that are in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dyn_probe.errors import TraceError, WriteFailed, on_one_line
from dyn_probe.trace.arrow_rows import arrow_schema, row_size, spelt_out, text_size
from dyn_probe.trace.checks import Checks, append_checks, chunk_places, crc_of, read_checks, read_footer
from dyn_probe.trace.damage import REFUSED, Damage, refuse_large
from dyn_probe.trace.run_fields import FileCheck
from dyn_probe.trace.run_folder import scratch_file
from dyn_probe.trace.schema import SCHEMA_VERSION, Table
from dyn_probe.trace.selection import Steps
from dyn_probe.trace.typed import entry, needed, read

_KEY = b"dyn_probe"
_GROUP_BYTES, _GROUP_ROWS = 16 * 2**20, 2**16
UNCHECKED = "its own checks are damaged, and it was read by those of its pages alone"


@dataclass(frozen=True)
class Torn:
    """A stream that ended in no whole batch."""

    stream: str = needed("its file")
    bytes: int = needed("bytes behind its last whole batch")


@dataclass(frozen=True)
class Merged:
    """What a file says of itself: where its rows come from, and what of it could not be read when it was written."""

    schema_version: int = entry("version of its columns", default=1)
    streams: tuple[str, ...] = entry("streams that are in it", factory=tuple)
    torn: tuple[Torn, ...] = entry("those of them that were cut off", factory=tuple)
    damage: tuple[Damage, ...] = entry("parts of them whose check failed", factory=tuple)
    segment: int = entry("the last recording that the rows come from", default=-1)


@dataclass(frozen=True)
class FileRows:
    """A file's rows, what it says of itself, and which parts of it are damaged."""

    data: pa.Table
    about: Merged
    damage: tuple[Damage, ...] = ()


def write_parquet(path: Path, data: pa.Table, about: Merged) -> None:
    """Write under another name, make sure it is on disk and whole, then move it in place.

    Raises:
        WriteFailed: the system refuses to write it.
    """
    described = asdict(about) | {"schema_version": SCHEMA_VERSION}
    data = data.replace_schema_metadata({_KEY: json.dumps(described)})
    group = max(1, min(_GROUP_ROWS, len(data) * _GROUP_BYTES // max(1, data.nbytes)))
    scratch = scratch_file(path)
    try:
        scratch.unlink(missing_ok=True)  # never through a link that lies there
        with scratch.open("x+b") as file:
            pq.write_table(data, file, compression="zstd", row_group_size=group, write_page_checksum=True)
            append_checks(file)
            file.flush()
            os.fsync(file.fileno())
        written = pq.read_metadata(scratch).num_rows
        if written != len(data):
            raise TraceError(f"wrote {written} of {len(data)} rows to {scratch}")
        os.replace(scratch, path)
    except (pa.ArrowException, OSError) as error:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)  # half a file on a full disk is in the way
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise WriteFailed(f"cannot write {path}: {why}; the streams beside it hold its rows") from error


def read_parquet(
    path: Path, table: Table, columns: Sequence[str] | None = None, steps: Steps | None = None
) -> FileRows:
    """The rows of a file whose checks hold.

    Args:
        table: what it holds.
        columns: names of those to read (default: all); others are not touched.
        steps: row groups that hold none of these are not touched; the others are read whole.

    Raises:
        TraceError: it is no Parquet file, not ours, its footer is damaged, or it would take more memory than there is.
        FileNotFoundError: there is none.
    """
    with path.open("rb") as handle:
        try:
            start, footer = read_footer(handle)
            checks = read_checks(handle, start, footer)
            if checks and not checks.footer:
                raise TraceError(f"{path}: its footer (from byte {start} on) is damaged; none of its rows can be read")
            file = _opened(handle)
            about = _described(file.metadata.metadata)
            if about is None:
                raise TraceError(f"{path} was not written by dyn-probe: it names no streams; move it out of the trace")
            groups = [group for group in range(file.num_row_groups) if steps is None or _holds(file, group, steps)]
            schema = pa.schema([field.with_type(spelt_out(field.type)) for field in file.schema_arrow])
            if len(set(schema.names)) < len(schema.names):
                raise TraceError(f"{path} has several columns of one name; no recorder writes that: move it away")
            names = [name for name in schema.names if columns is None or name in columns]
            part = Part(file, handle, checks, schema, names, path.name)
            _refuse_large(part, groups, table)
            found = _read_groups(part, groups)
        except REFUSED as error:
            raise TraceError(f"{path} cannot be read as Parquet: {on_one_line(error)}") from error
    unchecked = about.schema_version > 1 and checks is None
    return FileRows(found.data, about, (*found.damage, *([Damage(path.name, UNCHECKED, 0)] if unchecked else [])))


def read_merged(path: Path) -> Merged | None:
    """What a file says of itself; None where it is not ours or cannot be read."""
    try:
        return _described(pq.read_metadata(path).metadata)
    except REFUSED:
        return None


def check_of(path: Path) -> FileCheck:
    """What ``run.json`` says of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileCheck(pq.read_metadata(path).num_rows, file.seek(0, os.SEEK_END), digest)


def is_as_closed(path: Path, check: FileCheck) -> bool:
    """Whether a file has the size and the digest that ``run.json`` names."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) != check.bytes:
            return False
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest() == check.sha256


def _opened(handle: BinaryIO) -> pq.ParquetFile:
    """The file, whose texts come as dictionaries: one long text in many rows is held once until it is known what all
    rows of it take."""
    about = pq.read_metadata(handle)
    leaves = (about.schema.column(number) for number in range(len(about.schema)))
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    return pq.ParquetFile(handle, metadata=about, read_dictionary=texts, page_checksum_verification=True)


def _described(metadata: dict[bytes, bytes] | None) -> Merged | None:
    problems: list[str] = []
    try:
        content = json.loads((metadata or {}).get(_KEY, b"null"))
    except (ValueError, RecursionError):
        return None
    found = read(Merged, content, "", problems)
    return None if problems else found


def _refuse_large(part: Part, groups: list[int], table: Table) -> None:
    """Refuse by what the footer declares: columns of other types than a recorder writes, rows that do not fit into
    memory, pages that unpack to more than that."""
    about = [part.file.metadata.row_group(group) for group in groups]
    kept = [part.schema.field(name) for name in part.columns]
    wanted = pa.schema([field for field in kept if field.name in (*table.names, *table.aliases)])
    rows, known = sum(one.num_rows for one in about), {name: arrow_schema(table).field(name) for name in table.names}
    whole = pa.schema([known.get(table.aliases.get(field.name, field.name), field) for field in wanted])
    chunks = [
        [one.column(number) for number, _ in _chunks(part, group)] for group, one in zip(groups, about, strict=True)
    ]
    values = sum(chunk.num_values for several in chunks for chunk in several)  # of lists too
    refuse_large(f"{part.name}: {rows:,} rows", max(rows * row_size(whole), 16 * values))
    largest = max((sum(chunk.total_uncompressed_size for chunk in several) for several in chunks), default=0)
    refuse_large(f"{part.name}: its largest row group", largest)


def _holds(file: pq.ParquetFile, group: int, steps: Steps) -> bool:
    """Whether a row group may hold one of the steps, as its statistics say."""
    about = file.metadata.row_group(group)
    for place in range(about.num_columns):
        column = about.column(place)
        if column.path_in_schema == "step" and column.is_stats_set and column.statistics.has_min_max:
            ends = column.statistics.min, column.statistics.max
            return not all(isinstance(end, int) for end in ends) or steps.meet(*ends)
    return True


@dataclass(frozen=True)
class Part:
    """What is read of an open file, and by which checks."""

    file: pq.ParquetFile
    handle: BinaryIO
    checks: Checks | None
    schema: pa.Schema
    columns: list[str]
    name: str


def _read_groups(part: Part, groups: list[int]) -> FileRows:
    """Rows of the row groups that are whole, and the others by name."""
    whole, damage = [], []
    spoilt = {group: chunks for group in groups if (chunks := _spoilt(part, group))}
    sound = [group for group in groups if group not in spoilt]
    try:
        whole.append(_rows(part, sound))  # all of them in one go
    except REFUSED:
        whole.append(_rows(part, []))
        for group in sound:
            try:
                whole.append(_rows(part, [group]))
            except REFUSED:
                spoilt[group] = _undecoded(part, group)
    for group in sorted(spoilt):
        places = [_place(part, group, column) for column in spoilt[group]]
        where = f", column{'s' * (len(places) > 1)} {', '.join(places)}," if places else ""
        what = f"row group {group + 1} of {part.file.num_row_groups}{where} is damaged"
        damage.append(Damage(part.name, what, part.file.metadata.row_group(group).num_rows))
    return FileRows(pa.concat_tables(whole), Merged(), tuple(damage))


def _chunks(part: Part, group: int) -> list[tuple[int, str]]:
    """(number, column) of the chunks of a row group that are wanted; a list column has its own path."""
    about = part.file.metadata.row_group(group)
    tops = [about.column(number).path_in_schema.partition(".")[0] for number in range(about.num_columns)]
    wanted = set(part.columns)
    return [(number, top) for number, top in enumerate(tops) if top in wanted]


def _spoilt(part: Part, group: int) -> list[int]:
    """Chunks of a row group whose CRC is not that of the file's checks."""
    if part.checks is None:
        return []
    places, first = chunk_places(part.file.metadata), group * part.file.metadata.num_columns
    crcs = dict(enumerate(part.checks.chunks))
    return [
        number
        for number, _ in _chunks(part, group)
        if crc_of(part.handle, *places[first + number]) != crcs.get(first + number)
    ]


def _undecoded(part: Part, group: int) -> list[int]:
    """Chunks of a row group that Arrow cannot read."""
    found = []
    for number, top in _chunks(part, group):
        try:
            _rows(replace(part, columns=[top]), [group])
        except REFUSED:
            found.append(number)
    return found


def _place(part: Part, group: int, number: int) -> str:
    column = part.file.metadata.row_group(group).column(number)
    start, size = chunk_places(part.file.metadata)[group * part.file.metadata.num_columns + number]
    return f"{column.path_in_schema.partition('.')[0]} (bytes {start} to {start + size - 1})"


def _rows(part: Part, groups: list[int]) -> pa.Table:
    """Row groups, read in parts: what a footer declares takes no memory before its pages bear it out."""
    file, names, texts, batches = part.file, part.columns, 0, []
    schema = pa.schema([part.schema.field(name) for name in names])
    for batch in file.iter_batches(_GROUP_ROWS, row_groups=groups, columns=names) if groups else ():
        columns = [batch[name] for name in names]
        texts += sum(map(text_size, columns))
        refuse_large(f"{part.name}: its texts", texts)
        whole = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(whole, schema=schema))
    table = pa.Table.from_batches(batches, schema=schema)
    table.validate(full=True)
    declared = sum(file.metadata.row_group(group).num_rows for group in groups)
    if len(table) != declared:
        raise pa.ArrowInvalid(f"{declared} rows declared, {len(table)} found")
    return table
