"""All rows that a probe recorded, kept column by column: about 9 bytes a number instead of a dict a row."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

Row = dict[str, Any]

TYPECODES = {float: "d", int: "q"}
"""Python type → typecode of an array that holds its values exactly."""


class RowStore(Sequence[Row]):
    """Rows in the order in which they were recorded; each is read as a mapping by column name.

    ``pending`` are the rows of the step in progress: they may still change, and are part of the sequence. ``settle``
    packs them into columns. What is read from packed rows is a copy, equal value for value and type for type; a
    column that a row does not have is not in its mapping.

    Args:
        keep: whether ``settle`` keeps the rows; without it, it drops them.
    """

    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
        self.pending: list[Row] = []
        self._columns: dict[str, _Column] = {}
        self._packed = 0
        self._texts: dict[str, str] = {}

    def settle(self) -> None:
        """Pack the pending rows, or drop them where they are not kept."""
        for row in self.pending if self.keep else ():
            for name, value in row.items():
                value = self._texts.setdefault(value, value) if isinstance(value, str) else value
                self._columns.setdefault(name, _Column()).put(self._packed, value)
            self._packed += 1
        self.pending = []

    def __len__(self) -> int:
        return self._packed + len(self.pending)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self._row(i) for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        return self._row(place % len(self))

    def __iter__(self) -> Iterator[Row]:
        return (self._row(i) for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<{len(self)} rows of {', '.join(self._columns) or 'no columns yet'}>"

    def _row(self, i: int) -> Row:
        if i >= self._packed:
            return self.pending[i - self._packed]
        return {name: column.values[i] for name, column in self._columns.items() if column.holds(i)}


class _Column:
    """Values by row number: an array while they are all floats or all whole numbers, else a list."""

    def __init__(self) -> None:
        self.values: Any = None
        self._known = bytearray()

    def put(self, i: int, value: Any) -> None:
        """The value of row ``i``, after those of earlier rows."""
        code = TYPECODES.get(type(value))
        if self.values is None:
            self.values = array(code) if code else []
        if isinstance(self.values, array) and (code != self.values.typecode or not _fits(value)):
            self.values = list(self.values)
        gap = i - len(self._known)
        self.values.extend(_filler(self.values, gap))
        self.values.append(value)
        self._known.extend(bytes(gap) + b"\x01")

    def holds(self, i: int) -> bool:
        """Whether row ``i`` has a value."""
        return i < len(self._known) and bool(self._known[i])


def _fits(value: float | int) -> bool:
    return isinstance(value, float) or -(2**63) <= value < 2**63


def _filler(values: Any, count: int) -> Iterable[Any]:
    """``count`` placeholders for rows that do not have the column."""
    return array(values.typecode, bytes(count * values.itemsize)) if isinstance(values, array) else [None] * count
