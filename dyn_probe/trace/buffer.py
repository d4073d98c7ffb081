"""Rows on their way to disk: collected per table, flushed by number, by age, and by a timer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa

from dyn_probe.errors import TraceError, WriteFailed
from dyn_probe.trace.arrow_rows import arrow_schema, batch_of_columns, find_table, record_batch
from dyn_probe.trace.failures import Failures
from dyn_probe.trace.run_folder import STREAMS, StreamName
from dyn_probe.trace.schema import RANK, Table
from dyn_probe.trace.streams import StreamFile

KEPT_BYTES = 64 * 2**20
"""Rows that cannot be written are kept in memory up to this size, then lost; without limit where ``strict``."""

RETRY_SECONDS = 5.0
"""After a failed write, ``add`` leaves the next attempt to the timer or to this time."""


class Buffer:
    """The streams of one process. A row is on disk ``flush_seconds`` after it was added, or earlier.

    A small thread flushes twice per ``flush_seconds``, so that this also holds when no further row comes. It
    leaves a failed write to the next ``add`` or ``flush``, which raises or says so; the rows are kept until then.

    Args:
        run: folder of the trace.
        rank: number of this process.
        segment: 0 in the first recording, N after the N-th resume.
        flush_seconds: longest time that a row is only in memory; 0 writes at every ``add``.
        flush_rows: largest number of rows of one table that are only in memory, and in one batch.
        failures: what becomes of writes that fail.
    """

    def __init__(
        self, run: Path, rank: int, segment: int, flush_seconds: float, flush_rows: int, failures: Failures
    ) -> None:
        self._folder = run / STREAMS
        self._rank, self._segment, self._failures = rank, segment, failures
        self._flush_seconds, self._flush_rows = flush_seconds, flush_rows
        self._pending: dict[str, list[pa.RecordBatch]] = {}
        self._bytes = 0  # of all pending rows
        self._since: float | None = None  # when the oldest pending row came
        self._failure: WriteFailed | None = None  # of the last attempt to write
        self._retry = 0.0  # after a failed write: when ``add`` tries again
        self._files: dict[str, StreamFile] = {}
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._stop = threading.Event()
        self._closed = False
        if flush_seconds > 0:
            threading.Thread(target=self._tick, name="dyn-probe trace", daemon=True).start()

    @property
    def foreign(self) -> bool:
        """True in a forked child, which has a copy of the buffer but must not write it."""
        return os.getpid() != self._process

    def add(self, name: str, rows: Iterable[Mapping[str, object]]) -> None:
        table = find_table(name)
        self._add(name, record_batch(table, rows, self._fill(table)))

    def add_columns(self, name: str, columns: Mapping[str, Sequence[object] | np.ndarray]) -> None:
        table = find_table(name)
        self._add(name, batch_of_columns(table, columns, self._fill(table)))

    def _fill(self, table: Table) -> dict[str, object]:
        return {RANK.name: self._rank} if RANK in table.columns else {}

    def _add(self, name: str, batch: pa.RecordBatch) -> None:
        self._refuse()
        with self._lock:
            if batch.num_rows:
                self._keep(name, batch)
            if self._due(name):
                self._write_all()
        self._tell()

    def _keep(self, name: str, batch: pa.RecordBatch) -> None:
        """Hold the rows until they are written; where writing fails for long, no more than fit."""
        if self._waits and self._bytes + batch.nbytes > KEPT_BYTES:
            self._failures.lose(name, batch)
            return
        self._pending.setdefault(name, []).append(batch)
        self._bytes += batch.nbytes
        self._since = time.monotonic() if self._since is None else self._since

    @property
    def _waits(self) -> bool:
        """Whether the last attempt to write failed, and training goes on."""
        return self._failure is not None and not self._failures.strict

    @property
    def behind(self) -> bool:
        """Whether rows wait that could not be written."""
        return self._failure is not None and bool(self._pending)

    def _due(self, name: str) -> bool:
        if self._waits:
            return time.monotonic() >= self._retry
        count = sum(batch.num_rows for batch in self._pending.get(name, ()))
        old = self._since is not None and time.monotonic() - self._since >= self._flush_seconds
        return old or count >= self._flush_rows

    def flush(self) -> None:
        """Hand all rows to the operating system: from then on they survive the end of this process."""
        self._refuse()
        with self._lock:
            self._write_all()
        self._tell()

    def _write_all(self) -> None:
        """Write what can be written of every table, and note the first failure."""
        self._failure = None
        for name in list(self._pending):
            try:
                self._write(name)
            except WriteFailed as error:
                self._failure = self._failure or error
        self._since = self._since if self._failure else None
        self._bytes = sum(batch.nbytes for batches in self._pending.values() for batch in batches)
        self._retry = time.monotonic() + RETRY_SECONDS

    def _tell(self) -> None:
        if self._failure:
            self._failures.meet(self._failure)

    def _write(self, name: str) -> None:
        """The rows of one table, in few batches; those that cannot be written wait in this form."""
        batches = self._pending[name]
        if len(batches) > 1 or batches[0].num_rows > self._flush_rows:
            joined = pa.Table.from_batches(batches).combine_chunks()
            batches = self._pending[name] = joined.to_batches(max_chunksize=self._flush_rows)
        for position, batch in enumerate(batches):
            self._file(name).append(batch)
            self._pending[name] = batches[position + 1 :]
        del self._pending[name]

    def _file(self, name: str) -> StreamFile:
        if name not in self._files:
            path = self._folder / StreamName(self._segment, self._rank, name).file
            self._files[name] = StreamFile(path, arrow_schema(find_table(name)))
        return self._files[name]

    def _tick(self) -> None:
        while not self._stop.wait(self._flush_seconds / 2):
            with self._lock, suppress(TraceError):
                if not (self._closed or self.foreign or (self._waits and time.monotonic() < self._retry)):
                    self._write_all()  # of a failure, the next add, flush or close tells

    def _refuse(self) -> None:
        if self.foreign:
            raise TraceError(
                f"process {self._process} opened this trace, and process {os.getpid()} was forked from it; "
                f"write only from the process that opened the trace"
            )
        if self._closed:
            raise TraceError("the trace is closed; open it again with TraceWriter(..., resume=True) to add rows")

    def close(self) -> None:
        """Flush, then close the streams. What cannot be written is lost, unless ``strict``: then the failure is
        raised, and ``close`` may be called again. A second call does nothing."""
        if self._closed:
            return
        self.flush()
        with self._lock:
            self._closed = True
            self._stop.set()
            for name, batches in self._pending.items():
                for batch in batches:
                    self._failures.lose(name, batch)
            self._pending = {}
            for file in self._files.values():
                self._close_file(file)

    def _close_file(self, file: StreamFile) -> None:
        try:
            file.close()
        except WriteFailed as error:
            self._failures.meet(error)
