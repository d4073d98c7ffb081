"""What of a trace cannot be read: named by file and place, with the rows that are missing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

REFUSED = (pa.ArrowException, OSError, ValueError, ArithmeticError, LookupError, TypeError, MemoryError)
"""What Arrow raises for bytes that it cannot read."""


@dataclass(frozen=True)
class Damage:
    """A part of a file whose check fails.

    Args:
        file: its path below the trace's folder.
        what: which part of it (bytes, batch, row group, column), and what is wrong with it.
        rows: rows that are missing by it; None where that cannot be told.
    """

    file: str
    what: str
    rows: int | None

    def __str__(self) -> str:
        counts = {None: "an unknown number of rows is missing", 0: "no row is missing", 1: "1 row is missing"}
        return f"{self.file}: {self.what}; {counts.get(self.rows) or f'{self.rows:,} rows are missing'}"


def warn_of(run: Path, found: Iterable[Damage]) -> None:
    """One ``RuntimeWarning`` for each damaged part; what is whole has been read."""
    for one in found:
        warnings.warn(f"{run}: {one}", RuntimeWarning, stacklevel=5)
