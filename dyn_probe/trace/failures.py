"""What becomes of writes that fail in mid-training: an error where asked for, else one sentence and a count."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dyn_probe.errors import WriteFailed


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Around the writing of a file: what the system refuses becomes one sentence that names the file.

    Raises:
        WriteFailed: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise WriteFailed(f"cannot write {path}: {error.strerror or error}") from error


class Failures:
    """Writes that failed, and the rows that were lost by it.

    Args:
        run: folder of the trace.
        strict: raise at a failed write. Without it the first one is a ``RuntimeWarning`` and the others are only
            counted: training is worth more than its trace.
    """

    def __init__(self, run: Path, strict: bool) -> None:
        self._run, self._said = run, False
        self.strict = strict
        self.reason: str | None = None
        self.rows: dict[str, int] = {}
        self.from_step: int | None = None

    def meet(self, error: WriteFailed) -> None:
        """Raise the error where ``strict``; else say the first one, and go on."""
        first, self._said, self.reason = not self._said, True, self.reason or str(error)
        if self.strict:
            raise error
        if first:
            warnings.warn(
                f"{error}; the training continues, and its rows are kept in memory while they fit (--strict, or "
                "strict=True, would stop it)",
                RuntimeWarning,
                stacklevel=2,
            )

    def lose(self, table: str, batch: pa.RecordBatch) -> None:
        """Count rows that will never be written."""
        first = pc.min(batch["step"]).as_py() if "step" in batch.schema.names else None
        self._add({"rows": {table: batch.num_rows}, "from_step": first, "reason": self.reason})

    def _add(self, lost: Mapping[str, Any]) -> None:
        for table, rows in lost["rows"].items():
            self.rows[table] = self.rows.get(table, 0) + rows
        steps = [step for step in (self.from_step, lost["from_step"]) if step is not None]
        self.from_step, self.reason = min(steps, default=None), self.reason or lost["reason"]

    def as_manifest(self) -> dict[str, Any] | None:
        """For ``run.json``: rows lost by table, the first step that lacks some, and why; None where nothing is lost."""
        if not self.rows:
            return None
        return {"rows": dict(self.rows), "from_step": self.from_step, "reason": self.reason}

    def go_on_from(self, lost: Mapping[str, Any] | None, resume_step: int | None) -> None:
        """Take over what an earlier recording lost, unless all of it is recorded again from ``resume_step`` on."""
        step = None if lost is None else lost["from_step"]
        if lost is not None and (resume_step is None or step is None or step < resume_step):
            self._add(lost)

    def leave(self, mark: Path) -> None:
        """In a process other than rank 0: leave the count for rank 0, where even that can be written."""
        if self.rows:
            with suppress(OSError):
                mark.write_text(json.dumps(self.as_manifest()), encoding="utf-8")

    def take(self, marks: Iterable[Path]) -> None:
        """In rank 0: add what other processes lost."""
        for mark in marks:
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                self._add(json.loads(mark.read_text(encoding="utf-8")))
                mark.unlink()

    def say_end(self, unmerged: str | None) -> None:
        """When the trace is closed: one sentence on what is not in it, or not where it should be."""
        counts = ", ".join(f"{count} of {table}" for table, count in self.rows.items())
        parts = [f"the trace {self._run} lacks rows that could not be written ({counts})"] if counts else []
        parts += [f"the streams of {self._run} are not merged: {unmerged}"] if unmerged else []
        if parts:
            warnings.warn("; ".join(parts), RuntimeWarning, stacklevel=4)
