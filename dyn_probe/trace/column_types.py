"""What a column and a table are, and the columns that several tables share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column: Arrow type by name, unit, and what it means (with its formula).

    A value that was not measured is null; a ``required`` column has a value in every row. ``aliases`` are names that it
    had in older traces; ``load_trace`` keeps them beside it.
    """

    name: str
    type: str
    unit: str
    meaning: str
    required: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table: what a row is, its columns in order, and the columns of which no value comes twice: of several rows
    the first counts, or with ``latest`` the last."""

    name: str
    row: str
    columns: tuple[Column, ...]
    unique: tuple[str, ...] = ()
    latest: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def aliases(self) -> dict[str, str]:
        """Older name → column."""
        return {alias: column.name for column in self.columns for alias in column.aliases}


SEQ = "nats/sequence"
GRAD = "nats/parameter unit"
INNER = "(nats/parameter unit)²"


def real(name: str, unit: str, meaning: str) -> Column:
    """A column of real numbers."""
    return Column(name, "float64", unit, meaning)


STEP = Column("step", "int64", "step", "optimizer step, counted from 0", required=True)
PAIR = Column("pair_id", "string", "", "hash of the pair's prompt and response token ids")
RANK = Column("rank", "int32", "", "process that recorded the row", required=True)
