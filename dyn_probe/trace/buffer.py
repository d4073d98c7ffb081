"""Rows on their way to disk: collected per table, flushed by number, by age, and by a timer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from dyn_probe.errors import TraceError
from dyn_probe.trace.layout import STREAMS, StreamName
from dyn_probe.trace.rows import arrow_schema, find_table, record_batch
from dyn_probe.trace.schema import RANK
from dyn_probe.trace.streams import StreamFile


class Buffer:
    """The streams of one process. A row is on disk ``flush_seconds`` after it was added, or earlier.

    A small thread flushes twice per ``flush_seconds``, so that this also holds when no further row comes. It
    leaves a failed write to the next ``add`` or ``flush``, which raises; the rows are kept until then.

    Args:
        run: folder of the trace.
        rank: number of this process.
        segment: 0 in the first recording, N after the N-th resume.
        flush_seconds: longest time that a row is only in memory; 0 writes at every ``add``.
        flush_rows: largest number of rows of one table that are only in memory, and in one batch.
    """

    def __init__(self, run: Path, rank: int, segment: int, flush_seconds: float, flush_rows: int) -> None:
        self._folder = run / STREAMS
        self._rank, self._segment = rank, segment
        self._flush_seconds, self._flush_rows = flush_seconds, flush_rows
        self._pending: dict[str, list[pa.RecordBatch]] = {}
        self._since: float | None = None  # when the oldest pending row came
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
        fill = {RANK.name: self._rank} if RANK in table.columns else {}
        batch = record_batch(table, rows, fill)
        self._refuse()
        with self._lock:
            if batch.num_rows:
                self._pending.setdefault(name, []).append(batch)
                self._since = time.monotonic() if self._since is None else self._since
            if self._due(name):
                self.flush()

    def _due(self, name: str) -> bool:
        count = sum(batch.num_rows for batch in self._pending.get(name, ()))
        old = self._since is not None and time.monotonic() - self._since >= self._flush_seconds
        return old or count >= self._flush_rows

    def flush(self) -> None:
        """Hand all rows to the operating system: from then on they survive the end of this process."""
        self._refuse()
        with self._lock:
            for name in list(self._pending):
                self._write(name)
            self._since = None

    def _write(self, name: str) -> None:
        joined = pa.Table.from_batches(self._pending[name]).combine_chunks()
        batches = joined.to_batches(max_chunksize=self._flush_rows)
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
            try:
                self.flush()
            except TraceError:
                continue  # the rows are kept, and the next add, flush or close raises

    def _refuse(self) -> None:
        if self.foreign:
            raise TraceError(
                f"process {self._process} opened this trace, and process {os.getpid()} was forked from it; "
                f"write only from the process that opened the trace"
            )
        if self._closed:
            raise TraceError("the trace is closed; open it again with TraceWriter(..., resume=True) to add rows")

    def close(self) -> None:
        """Flush, then close the streams. A second call does nothing."""
        if self._closed:
            return
        self.flush()
        with self._lock:
            self._closed = True
            self._stop.set()
            for file in self._files.values():
                file.close()
