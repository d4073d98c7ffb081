"""Rows for trace tests: made from the schema alone, so that a new column is in every test at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.trace.schema import Column, Table


def value_of(column: Column, number: int) -> object:
    """A value that no other column and no other row has (but for truth values)."""
    salt = sum(map(ord, column.name))
    scalars = {
        "int64": number,
        "int32": 1000 * number + salt,
        "float64": number + salt / 7.0,
        "string": f"{column.name} «{number}» | \n\t✓",
        "bool": number % 2 == 0,
    }
    if column.type.startswith("list<"):
        element = scalars[column.type.removeprefix("list<").removesuffix(">")]
        return [element] * (number % 4)
    return scalars[column.type]


def sample_rows(table: Table, count: int, holes: bool = True) -> list[dict[str, Any]]:
    """``count`` rows; with ``holes`` every third value of a column that is not required is None."""
    rows = []
    for number in range(count):
        row = {column.name: value_of(column, number) for column in table.columns}
        for place, column in enumerate(table.columns):
            if holes and not column.required and (number + place) % 3 == 0:
                row[column.name] = None
        rows.append(row)
    return rows


def step_rows(*steps: int, **columns: object) -> list[dict[str, object]]:
    """One ``pairs`` row per step, whose loss tells it apart."""
    return [{"step": step, "pair_id": f"pair {step}", "loss": float(step), **columns} for step in steps]


def recorded_steps(path: Path | Trace, table: str = "pairs") -> list[int]:
    """The steps of the table's rows, as read."""
    trace = path if isinstance(path, Trace) else load_trace(path)
    return [int(step) for step in trace.table(table)["step"]]


def as_values(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The frame's rows as plain Python values, every kind of missing value as None."""
    return [
        {name: _plain(value) for name, value in zip(frame.columns, row, strict=True)}
        for row in frame.itertuples(index=False)
    ]


def plain_column(column: pd.Series) -> list[Any]:
    """A column's values in the same way."""
    return [_plain(value) for value in column.array]


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return value
