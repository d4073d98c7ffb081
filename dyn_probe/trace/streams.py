"""One append-only Arrow IPC stream on disk: written in whole batches, read up to its first torn batch."""

from __future__ import annotations

import os
from os import write
from pathlib import Path

import pyarrow as pa

from dyn_probe.errors import TraceError, WriteFailed
from dyn_probe.trace.failures import naming


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
                    f"wanted to start the stream {path}, which exists: two processes record as the same rank; "
                    f"give each process its own rank"
                ) from error
        self._size = 0
        self._head = schema.serialize().to_pybytes()

    def append(self, batch: pa.RecordBatch) -> None:
        """Write one batch; what an earlier, failed attempt left behind is cut off first."""
        if not self.path.exists():
            raise WriteFailed(f"cannot write {self.path}: it was removed while it was written")
        content = (b"" if self._size else self._head) + batch.serialize().to_pybytes()
        with naming(self.path):
            if os.fstat(self._file).st_size != self._size:
                os.ftruncate(self._file, self._size)
            _write_all(self._file, content)
        self._size += len(content)

    def close(self) -> None:
        with naming(self.path):
            os.close(self._file)


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[write(file, rest) :]


def read_stream(path: Path) -> tuple[pa.Table | None, int]:
    """All whole batches of a stream, and the number of bytes behind them that are no whole batch.

    The table is None where not even the stream's head is whole. Reading stops at the first batch that is cut
    off or fails Arrow's full validation.
    """
    content = path.read_bytes()
    source = pa.BufferReader(content)
    batches: list[pa.RecordBatch] = []
    schema, end = None, 0
    try:
        with pa.ipc.open_stream(source) as stream:
            schema, end = stream.schema, source.tell()
            for batch in stream:
                batch.validate(full=True)
                batches.append(batch)
                end = source.tell()
    except (pa.ArrowException, OSError):
        pass  # a torn tail: what came before it is whole, and the caller learns how many bytes are not
    table = None if schema is None else pa.Table.from_batches(batches, schema=schema)
    return table, len(content) - end
