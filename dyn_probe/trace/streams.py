"""One append-only Arrow IPC stream on disk: written in sealed batches, read batch by whole batch."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from os import write
from pathlib import Path

import pyarrow as pa

from dyn_probe.errors import TraceError, WriteFailed, on_one_line
from dyn_probe.trace.arrow_rows import arrow_schema, misfit
from dyn_probe.trace.damage import REFUSED, Damage, refuse_large
from dyn_probe.trace.failures import naming
from dyn_probe.trace.messages import (
    Batch,
    batch_at,
    batch_message,
    head_crc,
    head_message,
    is_compressed,
    is_sealed,
    message_end,
    next_batch,
)
from dyn_probe.trace.schema import Table


class StreamFile:
    """A stream that this process alone appends to. Every batch is handed to the operating system at once.

    Raises:
        TraceError: the file exists already.
        WriteFailed: it cannot be written.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)
        with naming(path):
            try:
                self._file = os.open(path, flags, 0o644)
            except FileExistsError as error:
                raise TraceError(
                    f"cannot start the stream {path}, because it exists: two processes record as the same rank; "
                    f"give each process its own rank"
                ) from error
        self._size = self._rows = 0
        self._head = head_message(schema)
        self._crc = head_crc(self._head) or b""

    def append(self, batch: pa.RecordBatch) -> None:
        """Write one batch; what an earlier, failed attempt left behind is cut off first."""
        if not self.path.exists():
            raise WriteFailed(f"cannot write {self.path}: it was removed while it was written")
        content = (b"" if self._size else self._head) + batch_message(batch, self._rows, self._crc)
        with naming(self.path):
            if os.fstat(self._file).st_size != self._size:
                os.ftruncate(self._file, self._size)
            _write_all(self._file, content)
        self._size += len(content)
        self._rows += batch.num_rows

    def close(self) -> None:
        with naming(self.path):
            os.close(self._file)


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[write(file, rest) :]


@dataclass(frozen=True)
class StreamRows:
    """What a stream holds.

    Args:
        data: its whole batches; None where not even the head of an unsealed stream is whole.
        torn: bytes behind the last whole batch that are no whole batch: a crash in the middle of a write.
        damage: batches whose check fails.
    """

    data: pa.Table | None
    torn: int = 0
    damage: tuple[Damage, ...] = ()


def read_stream(path: Path, table: Table) -> StreamRows:
    """All whole batches of a stream.

    A stream without seals, as schema version 1 had it, is read up to the first batch that is cut off or fails Arrow's
    full validation.

    Args:
        table: what it holds; batches are read by the schema of today where the stream's own head is damaged.

    Raises:
        TraceError: it is larger than there is room for, has columns of types that no recorder writes, or compressed
            buffers.
    """
    refuse_large(str(path), path.stat().st_size)
    content = path.read_bytes()
    return _read_sealed(content, path, table) if is_sealed(content) else _read_unsealed(content, path, table)


def _refuse(path: Path, table: Table, schema: pa.Schema) -> None:
    if why := misfit(table, schema):
        raise TraceError(f"{path.name} does not fit table {table.name!r}: {on_one_line(why)}")


def _plain(content: bytes, start: int, path: Path) -> None:
    """See that a batch is not compressed: no recorder writes such batches."""
    if is_compressed(content, start):
        raise TraceError(f"{path.name}: the batch at byte {start} is compressed, which no recorder writes")


def _read_unsealed(content: bytes, path: Path, table: Table) -> StreamRows:
    source = pa.BufferReader(content)
    batches: list[pa.RecordBatch] = []
    schema, end = None, 0
    try:
        with pa.ipc.open_stream(source) as stream:
            schema, end = stream.schema, source.tell()
            _refuse(path, table, schema)
            while message_end(content, end) is not None:
                _plain(content, end, path)
                batch = stream.read_next_batch()
                batch.validate(full=True)
                batches.append(batch)
                end = source.tell()
    except (*REFUSED, StopIteration):
        pass  # a torn tail: what came before it is whole, and the caller learns how many bytes are not
    return StreamRows(None if schema is None else pa.Table.from_batches(batches, schema=schema), len(content) - end)


def _read_sealed(content: bytes, path: Path, table: Table) -> StreamRows:
    schema = arrow_schema(table)
    file, end = f"{path.parent.name}/{path.name}", message_end(content, 0)
    crc = head_crc(content[:end])
    if crc is not None and end is not None:
        with suppress(*REFUSED):
            own = pa.ipc.read_schema(pa.py_buffer(content[:end]))
            _refuse(path, table, own)
            return _read_batches(content, end, 0, own, crc, file)
    first = next_batch(content, 0)
    if first is None:
        damage = [] if end is None else [Damage(file, f"its head (bytes 0 to {end - 1}) is damaged", None)]
        return StreamRows(None, len(content) - (end or 0), tuple(damage))
    head = Damage(file, f"its head (bytes 0 to {first.start - 1}) is damaged", first.first)
    rest = _read_batches(content, first.start, first.first, schema, head_crc(head_message(schema)), file)
    return replace(rest, damage=(head, *rest.damage))


def _read_batches(content: bytes, end: int, rows: int, schema: pa.Schema, crc: bytes | None, file: str) -> StreamRows:
    """The batches from byte ``end`` on, the first of which begins with row ``rows``; those whose checks fail are named.

    Args:
        crc: of the head that ``schema`` is from.
    """
    batches: list[pa.RecordBatch] = []
    damage: list[Damage] = []
    while end < len(content):
        found = batch_at(content, end) or next_batch(content, end)
        if found is None:
            whole = message_end(content, end)
            if whole is not None:
                damage.append(Damage(file, f"the last batch (bytes {end} to {whole - 1}) is damaged", None))
            end = whole or end
            break  # what is left is cut off
        if found.start > end:
            missing = max(0, found.first - rows)
            damage.append(Damage(file, f"bytes {end} to {found.start - 1} are damaged", missing))
        batch = _decoded(content, found, schema, crc)
        if batch is None:
            damage.append(Damage(file, f"the batch in bytes {found.start} to {found.end - 1} is damaged", found.rows))
        else:
            batches.append(batch)
        rows, end = found.first + found.rows, found.end
    return StreamRows(pa.Table.from_batches(batches, schema=schema), len(content) - end, tuple(damage))


def _decoded(content: bytes, found: Batch, schema: pa.Schema, crc: bytes | None) -> pa.RecordBatch | None:
    if not found.whole or found.head != crc:
        return None
    try:
        if is_compressed(content, found.start):
            return None
        batch = pa.ipc.read_record_batch(pa.py_buffer(content).slice(found.start, found.end - found.start), schema)
        batch.validate(full=True)
    except REFUSED:
        return None
    return batch if batch.num_rows == found.rows else None
