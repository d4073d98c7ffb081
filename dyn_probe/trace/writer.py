"""Record a trace: append-only streams while training runs, one Parquet file per table once it is over."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from dyn_probe.errors import TraceError, WriteFailed
from dyn_probe.trace.buffer import Buffer
from dyn_probe.trace.failures import Failures, naming
from dyn_probe.trace.lock import FolderLock
from dyn_probe.trace.manifest import checked, now, write_manifest
from dyn_probe.trace.merge import merge, remove_merged_streams
from dyn_probe.trace.opening import open_folder, wait_for_folder, wait_for_others
from dyn_probe.trace.run_folder import STREAMS, list_lost_marks, list_open_marks, lost_mark, open_mark, spare_file

_STATUSES = ("closed", "stopped")


class TraceWriter:
    """Writes one process's rows to a trace folder.

    ::

        with TraceWriter("runs/mine", {"objective": {"name": "dpo"}}) as writer:
            writer.add("steps", [{"step": 0, "loss": 0.693}])

    With several processes, each has its own writer. Rank 0 creates the folder, writes ``run.json`` and, when it
    closes, waits for the others to close and merges all streams; the others wait until it has opened the folder.

    Args:
        out: folder of the trace: new or empty, unless ``force`` or ``resume``.
        manifest: what ``run.json`` says about the run (command, config, model, …); only rank 0's counts.
        rank: number of this process.
        force: overwrite an older trace; files in the folder that are not the trace's own stay.
        flush_seconds: longest time that a row is only in memory; 0 writes at every ``add``.
        flush_rows: largest number of rows of one table that are only in memory.
        resume: continue the trace in ``out``, closed or killed; ``manifest`` replaces the fields it names.
        resume_step: the step at which training continues: earlier rows of this step and later are not read.
        session: one string per launch, the same in all its processes (broadcast it from rank 0). With it the
            other ranks never mistake an older trace in ``out`` for the one rank 0 is about to open; without
            it, let rank 0 open first. A rank that resumes must name it.
        wait_seconds: how long other ranks wait for rank 0 to open, and rank 0 for them to close.
        strict: raise ``WriteFailed`` where the system refuses a write (full disk, file-size limit). Without it that is
            said once, as a ``RuntimeWarning``; rows are kept in memory while they fit, then counted as lost.

    Raises:
        TraceError: the folder cannot be used as asked, or an argument does not fit.
    """

    def __init__(
        self,
        out: str | Path,
        manifest: Mapping[str, object],
        *,
        rank: int = 0,
        force: bool = False,
        flush_seconds: float = 2.0,
        flush_rows: int = 200,
        resume: bool = False,
        resume_step: int | None = None,
        session: str | None = None,
        wait_seconds: float = 60.0,
        strict: bool = True,
    ) -> None:
        _check(rank, flush_seconds, flush_rows, force, resume, resume_step, session)
        self.path, self.rank = Path(out), rank
        self._wait_seconds = wait_seconds
        fields = checked(manifest)
        self._lock: FolderLock | None = None
        if rank == 0:
            self._lock, self._manifest = open_folder(
                self.path, fields, force=force, resume=resume, resume_step=resume_step, session=session
            )
        else:
            self._manifest = wait_for_folder(self.path, rank, session, wait_seconds)
        self._segment = len(self._manifest["resumes"])
        self._mark = open_mark(self.path, rank, self._segment) if rank else None
        if self._mark:
            _put_mark(self._mark, rank)
        self._failures = Failures(self.path, strict)
        if rank == 0:
            self._failures.go_on_from(self._manifest.get("lost"), resume_step)
        self._buffer = Buffer(self.path, rank, self._segment, flush_seconds, flush_rows, self._failures)
        self._finalizer = weakref.finalize(self, _abandon, self._buffer, self._failures, self._lock, self._mark)
        self._done = False

    def add(self, table: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Add rows to a table: all of them, or none and an error.

        Args:
            table: name of the table.
            rows: a mapping of column name → value per row. Columns left out, ``None`` and NaN are null;
                ``rank``, where it is a column for the process, is filled in.

        Raises:
            TraceError: unknown table or columns, or values of a wrong type: all of them are listed.
        """
        self._buffer.add(table, rows)

    def add_columns(self, table: str, columns: Mapping[str, Sequence[object] | np.ndarray]) -> None:
        """``add``, where the rows are at hand as columns: name → a value per row, in lists of plain Python values or
        arrays.

        Raises:
            TraceError: as ``add``.
        """
        self._buffer.add_columns(table, columns)

    def flush(self) -> None:
        """Hand all rows to the operating system now: from then on they survive the end of this process."""
        self._buffer.flush()

    def update_manifest(self, **fields: object) -> None:
        """Set fields of ``run.json`` atomically. Does nothing on ranks other than 0."""
        content = checked(fields)
        if self._done:
            raise TraceError(f"the trace {self.path} is closed; update_manifest before close")
        if self.rank == 0:
            self._manifest.update(content)
            with self.surviving():
                write_manifest(self.path, self._manifest)

    @property
    def complete(self) -> bool:
        """Whether every row so far could be handed to the operating system; false where some wait or are lost."""
        return not (self._buffer.behind or self._failures.rows)

    @contextmanager
    def surviving(self, path: Path | None = None) -> Iterator[None]:
        """Around the writing of a file beside the trace: what fails in it is met as a failed write of the trace is.

        Args:
            path: the file, to be named where the system refuses to write it.
        """
        try:
            with naming(path) if path else nullcontext():
                yield
        except WriteFailed as error:
            self._failures.meet(error)

    def close(self, status: str = "closed", reason: str | None = None) -> None:
        """Write what is left; rank 0 then merges the streams of all ranks into Parquet.

        A second call does nothing. Where the other ranks do not close in time (after ``status="stopped"``:
        at once), the streams are left unmerged, and are read as they are.

        Args:
            status: ``closed``, or ``stopped`` if training did not run to its end.
            reason: why it stopped.

        Raises:
            TraceError: rows could not be written or merged, and the writer is strict. Nothing is lost; ``close`` may
                be called again.
        """
        if status not in _STATUSES:
            raise TraceError(f"a trace is closed with status {' or '.join(_STATUSES)}; got {status!r}")
        if self._done:
            return
        self._buffer.close()
        if self._mark:
            self._failures.leave(lost_mark(self.path, self.rank, self._segment))
            with suppress(OSError):
                self._mark.unlink(missing_ok=True)
        if self.rank == 0:
            self._close_folder(status, reason)
        self._done = True
        self._finalizer.detach()
        if self._lock:
            self._lock.release()

    def _close_folder(self, status: str, reason: str | None) -> None:
        """Parquet first, then ``run.json``, then the streams are removed: readable at every moment."""
        patience = self._wait_seconds if status == "closed" else 0.0
        unmerged = wait_for_others(self.path, self._segment, patience)
        failure: TraceError | None = None
        if unmerged is None:
            try:
                self._manifest.update(files=merge(self.path))
            except TraceError as error:
                failure, unmerged = error, str(error)
        self._failures.take(list_lost_marks(self.path))
        self._manifest.update(status=status, reason=reason, closed=now(), unmerged=unmerged)
        self._manifest.update(lost=self._failures.as_manifest())
        self._write_end()
        if failure and self._failures.strict:
            raise failure
        with suppress(OSError):
            spare_file(self.path).unlink(missing_ok=True)
        if not unmerged:
            with suppress(OSError):  # what stays is in Parquet all the same
                self._tidy()
            if self._failures.reason:
                self._write_end()  # there is room again
        self._failures.say_end(unmerged)

    def _write_end(self) -> None:
        with self.surviving():
            write_manifest(self.path, self._manifest)

    def _tidy(self) -> None:
        """Remove what is merged: streams, marks of processes that died, and the streams' folder if nothing is left."""
        remove_merged_streams(self.path)
        for mark in list_open_marks(self.path):
            mark.unlink(missing_ok=True)
        with suppress(OSError):
            os.rmdir(self.path / STREAMS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(error)

    def end(self, error: BaseException | None, reason: str | None = None) -> None:
        """Close at the end of a ``with`` block: as closed, or as stopped by ``error``, which is never replaced.

        Args:
            error: what left the block.
            reason: why it stopped, if it did (default: what the error says).
        """
        status = "closed" if error is None else "stopped"
        reason = None if error is None else reason or str(error) or type(error).__name__
        try:
            self.close(status, reason)
        except KeyboardInterrupt:
            self._give_up(status, reason)  # begun anew: to leave now would leave a finished run unclosed
            raise
        except TraceError as unwritten:
            self._give_up(status, reason)
            if error is None:
                raise
            error.add_note(f"and the trace could not be closed: {unwritten}")

    def _give_up(self, status: str, reason: str | None) -> None:
        """Close without waiting and without errors: nobody will call ``close`` again."""
        self._failures.strict, self._wait_seconds = False, 0.0
        with warnings.catch_warnings(action="ignore"):
            self.close(status, reason)


def _check(
    rank: int,
    flush_seconds: float,
    flush_rows: int,
    force: bool,
    resume: bool,
    resume_step: int | None,
    session: str | None,
) -> None:
    """Refuse arguments that contradict each other before anything is touched."""
    if rank < 0 or flush_seconds < 0 or flush_rows < 1:
        raise TraceError(
            f"wanted rank >= 0, flush_seconds >= 0 and flush_rows >= 1; got {rank}, {flush_seconds}, {flush_rows}"
        )
    if force and resume:
        raise TraceError("force removes the older trace and resume continues it; write only one of them")
    if resume_step is not None and not resume:
        raise TraceError(f"resume_step={resume_step} says where to continue; it needs resume=True")
    if rank and resume and session is None:
        raise TraceError(
            f"rank {rank} cannot distinguish the resumed trace from the old one; write session=..., any string "
            f"that is new for each launch and the same in all its processes"
        )


def _put_mark(mark: Path, rank: int) -> None:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        raise TraceError(f"two processes record as rank {rank} ({mark}); give each process its own rank") from None
    except OSError as error:
        raise TraceError(f"cannot record as rank {rank}: {error}") from error


def _abandon(buffer: Buffer, failures: Failures, lock: FolderLock | None, mark: Path | None) -> None:
    """The writer was dropped, or the interpreter ends, without ``close``: write what is left, no merge."""
    if buffer.foreign:
        return
    failures.strict = False  # nobody is left to be told by an error
    try:
        buffer.close()
        failures.say_end(None)
    finally:
        if mark:
            with suppress(OSError):
                mark.unlink(missing_ok=True)
        if lock:
            lock.release()
