"""What a probe keeps of a run, and the end of it: rows, their writer, the trace's closing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from dyn_probe.probe.row_store import Row, RowStore
from dyn_probe.probe.run_rows import RunRows
from dyn_probe.trace.writer import TraceWriter


class Kept:
    """Rows on their way to a trace, as a context that closes it.

    Args:
        rows: where they are.
        owns: whether the trace is closed with this.
    """

    def __init__(self, rows: RunRows, owns: bool) -> None:
        self._rows, self._owns = rows, owns

    @property
    def writer(self) -> TraceWriter | None:
        """Where rows are written; None where they are only kept."""
        return self._rows.writer

    @property
    def fresh(self) -> list[Row]:
        """Rows of the step in progress, not yet handed to the writer."""
        return self._rows.fresh

    @property
    def scored(self) -> list[Row]:
        """Rows of the table ``scores`` of the steps in progress, not yet handed to the writer."""
        return self._rows.scored

    @property
    def rows(self) -> RowStore:
        """All recorded rows, each a mapping by column name."""
        return self._rows.all

    @property
    def noise_floor(self) -> float | None:
        """Largest difference that the same weights give (nats/sequence); a resumed run takes that of its beginning."""
        return self._rows.floor

    @noise_floor.setter
    def noise_floor(self, floor: float | None) -> None:
        self._rows.floor = floor

    def log(self, step: int, **fields: Any) -> None:
        """Add columns of the ``steps`` table to a step (loss, grad_norm, …), recorded or not; tensors
        of one number are read when the step is over."""
        self._rows.log(step, fields)

    def logged(self, step: int) -> Mapping[str, Any]:
        """The step's row of the ``steps`` table as it stands, while the step is in progress."""
        return self._rows.step(step) if self._rows.holds(step) else {}

    def flush(self) -> None:
        """Hand the rows of the steps done so far to the writer."""
        self._rows.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            self._finish()
        finally:
            if self._rows.writer is not None and self._owns:
                self._rows.writer.end(error, f"{type(error).__name__}: {error}")

    def close(self, status: str = "closed", reason: str | None = None) -> None:
        """Write what is pending and let go of the optimizer; closes the trace if the probe made it."""
        self._finish()
        if self._rows.writer is not None and self._owns:
            self._rows.writer.close(status, reason)

    def _finish(self) -> None:
        self.flush()
