"""Which part of a trace is read: columns of its tables, and steps."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt

from dyn_probe.errors import TraceError, did_you_mean, on_one_line
from dyn_probe.trace.schema import TABLES, Table

STEP = "step"
_LAST = 2**62


@dataclass(frozen=True)
class Steps:
    """Steps ``low … high``; of these every so many, or only some."""

    low: int = 0
    high: int = _LAST
    every: int = 1
    only: frozenset[int] | None = None

    def meet(self, low: int, high: int) -> bool:
        """Whether any of them may lie in ``low … high``."""
        return self.low <= high and low <= self.high

    def mask(self, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of ``steps`` are among them."""
        found = (steps >= self.low) & (steps <= self.high) & ((steps - self.low) % self.every == 0)
        return found if self.only is None else found & np.isin(steps, list(self.only))


@dataclass(frozen=True)
class Selection:
    """What is read of a trace.

    Args:
        columns: table → its columns that are read; a table that is not there is read whole.
        steps: None reads all of them. Tables without steps are read whole.
    """

    columns: dict[str, frozenset[str]]
    steps: Steps | None = None

    def shown(self, table: Table) -> tuple[str, ...]:
        """Columns that the reader asked for, in the order of the schema."""
        wanted = self.columns.get(table.name)
        return tuple(name for name in table.names if wanted is None or name in wanted)

    def read(self, table: Table) -> tuple[str, ...] | None:
        """Columns that have to be read for that; None for all."""
        if table.name not in self.columns:
            return None
        ordering = {STEP, *table.unique}
        return tuple(name for name in table.names if name in self.columns[table.name] | ordering)


EVERYTHING = Selection({})


def select(columns: Iterable[str] | None, steps: slice | int | Collection[int] | None) -> Selection:
    """A reader's wishes: ``columns`` as "table.column", or "column" for every table that has it.

    Raises:
        TraceError: names that no table has, or steps that are none.
    """
    if isinstance(columns, str):
        raise TraceError(f'wanted a list of columns; came the text {columns!r}: write ["{columns}"]')
    found: dict[str, set[str]] = {}
    unknown = []
    for wanted in map(str, columns or ()):
        place, _, name = wanted.rpartition(".")
        tables = [t for t in TABLES.values() if name in (*t.names, *t.aliases) and place in ("", t.name)]
        unknown += [] if tables else [on_one_line(wanted, 60) + did_you_mean(wanted, _places())]
        for table in tables:
            found.setdefault(table.name, set()).add(table.aliases.get(name, name))
    if unknown:
        raise TraceError(
            f"no table has these columns: {', '.join(unknown)}; write TABLE.COLUMN, or COLUMN for every table that has "
            f"it; tables: {', '.join(TABLES)}"
        )
    return Selection({name: frozenset(names) for name, names in found.items()}, _steps(steps))


def _places() -> list[str]:
    """Every column, as TABLE.COLUMN and as COLUMN."""
    return [place for table in TABLES.values() for name in table.names for place in (f"{table.name}.{name}", name)]


def _steps(steps: slice | int | Collection[int] | None) -> Steps | None:
    """What a reader wrote for ``steps``.

    Raises:
        TraceError: it holds something else than whole numbers, or a slice counts from the end or backwards.
    """
    if steps is None:
        return None
    try:
        found = _stretch(steps) if isinstance(steps, slice) else _some(steps)
    except (TypeError, ValueError):
        found = None
    if found is None:
        raise TraceError(
            f"wanted steps as a whole number, several, a range, or a slice from 0 on with a positive stride; came "
            f"{on_one_line(repr(steps), 100)}; write steps=10, steps=[0, 10], or steps=slice(100, None, 10)"
        )
    return found


def _stretch(steps: slice) -> Steps | None:
    start, every = index(0 if steps.start is None else steps.start), index(1 if steps.step is None else steps.step)
    stop = _LAST if steps.stop is None else index(steps.stop)
    return Steps(start, stop - 1, every) if min(start, stop) >= 0 and every > 0 else None


def _some(steps: Any) -> Steps:
    if isinstance(steps, range) and steps.step > 0:
        return Steps(steps.start, steps.stop - 1, steps.step)
    only = frozenset(index(step) for step in (steps if hasattr(steps, "__iter__") else [steps]))
    return Steps(min(only, default=0), max(only, default=-1), 1, only)
