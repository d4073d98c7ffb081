"""Rows of plain Python values → Arrow batches, checked against the schema; all errors are reported at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import NoneType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dyn_probe.errors import TraceError, nearest, unknown
from dyn_probe.trace.schema import TABLES, Column, Table

_SCALARS: dict[str, pa.DataType] = {
    "int64": pa.int64(),
    "int32": pa.int32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
}


def find_table(name: str) -> Table:
    """The table of that name; an unknown name is an error that lists the known ones."""
    if name not in TABLES:
        raise TraceError(unknown("table", name, TABLES))
    return TABLES[name]


def arrow_type(name: str) -> pa.DataType:
    """``"float64"`` or ``"list<float64>"`` → the Arrow type."""
    if name.startswith("list<"):
        return pa.list_(arrow_type(name.removeprefix("list<").removesuffix(">")))
    return _SCALARS[name]


def misfit(table: Table, schema: pa.Schema) -> str:
    """Why columns of these types are not read as the table's; empty where they are.

    Only types of which every row takes bytes, and takes them once: a run-length, a dictionary, a view or a list of
    nothing would let some bytes stand for any number of rows. A column that may be null may be so as a whole, since
    required ones have each row's bytes.
    """
    required = {column.name for column in table.columns if column.required}
    named = {table.aliases.get(field.name, field.name): field.type for field in schema}
    for name in sorted(required):
        if name not in named or pa.types.is_null(named[name]):
            return f"column {name} is missing"
    odd = [f"{name} ({str(kind)[:60]})" for name, kind in named.items() if not _is_plain(kind)]
    return f"no recorder writes columns of these types: {', '.join(odd[:5])}" if odd else ""


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
        if pa.types.is_null(kind):
            return True
    known = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_null)
    return pa.types.is_large_string(kind) or any(one(kind) for one in known)


def row_size(schema: pa.Schema) -> int:
    """Bytes that a row of these columns takes at least in a table and in a frame of pandas, texts and lists empty."""
    return sum(2 * (kind.bit_width // 8 or 1) if _has_width(kind) else 16 for kind in schema.types)


def spelt_out(kind: pa.DataType) -> pa.DataType:
    """A type without its dictionary."""
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(spelt_out(kind.value_type)))
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def text_size(column: pa.Array) -> int:
    """Bytes of the texts that a column of dictionaries takes once it is spelt out."""
    if pa.types.is_list(column.type):
        return text_size(column.flatten())
    if not pa.types.is_dictionary(column.type):
        return 0
    return int(pc.sum(pc.binary_length(column.dictionary).cast(pa.int64()).take(column.indices)).as_py() or 0)


def _has_width(kind: pa.DataType) -> bool:
    return bool(pa.types.is_primitive(kind) or pa.types.is_boolean(kind))


@cache
def arrow_schema(table: Table) -> pa.Schema:
    """The table's columns as Arrow fields, each with its unit and meaning as metadata."""
    return pa.schema([_field(column) for column in table.columns])


def _field(column: Column) -> pa.Field:
    described = {"unit": column.unit, "meaning": column.meaning}
    return pa.field(column.name, arrow_type(column.type), nullable=not column.required, metadata=described)


def record_batch(table: Table, rows: Iterable[Mapping[str, object]], fill: Mapping[str, object]) -> pa.RecordBatch:
    """``rows`` as one Arrow batch.

    A missing column, ``None`` and NaN become null; NumPy and torch scalars are taken by their ``.item()``.

    Args:
        table: whose columns the rows have.
        rows: one mapping of column name → value per row.
        fill: values of columns that a row leaves out.

    Raises:
        TraceError: columns that do not exist, values of a wrong type, required values left out: all of them.
    """
    rows = list(rows)
    mappings = [row if isinstance(row, dict | Mapping) else {} for row in rows]
    columns = {name: [row.get(name) for row in mappings] for name in {name: None for row in mappings for name in row}}
    return _batch(table, columns, len(rows), fill, _misnamed(table, rows))


def batch_of_columns(
    table: Table, columns: Mapping[str, Sequence[object] | np.ndarray], fill: Mapping[str, object]
) -> pa.RecordBatch:
    """The same, where the rows are at hand as columns.

    Args:
        columns: name → a value per row.
    """
    sizes = {name: _size(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1 or None in sizes.values():
        found = ", ".join(f"{name}: {'no sequence' if size is None else size}" for name, size in sizes.items())
        raise TraceError(f"table {table.name!r} wants as many values in every column; got {found}")
    count = next(iter(sizes.values()), 0) or 0
    return _batch(table, columns, count, fill, _misnamed(table, [dict.fromkeys(columns)] * max(1, count)))


def _size(values: Any) -> int | None:
    try:
        return len(values)
    except TypeError:  # one number, or a generator
        return None


def _batch(
    table: Table,
    columns: Mapping[str, Sequence[object] | np.ndarray],
    rows: int,
    fill: Mapping[str, object],
    misnamed: Iterable[str],
) -> pa.RecordBatch:
    problems = list(misnamed)
    none = [None] * rows
    arrays = [
        _array(column, _filled(columns.get(column.name, none), fill.get(column.name)), problems)
        for column in table.columns
    ]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise TraceError(
            f"table {table.name!r} cannot take these rows:\n{lines}\nits columns: {', '.join(table.names)}"
        )
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(table))


def _filled(values: Sequence[object] | np.ndarray, default: object) -> Sequence[object] | np.ndarray:
    return values if default is None else [default if value is None else value for value in values]


def _misnamed(table: Table, rows: list[Mapping[str, object]]) -> Iterator[str]:
    """A sentence for each column name that the schema does not have, and for rows that are not mappings."""
    unknown: dict[str, int] = {}
    known = set(table.names)
    for number, row in enumerate(rows):
        if not isinstance(row, dict | Mapping):
            yield f"row {number}: wanted a mapping of column name to value, got {_show(row)}"
            continue
        for name in row.keys() - known:
            unknown[name] = unknown.get(name, 0) + 1
    for name, count in sorted(unknown.items(), key=str):
        near = nearest(name, table.names)
        hint = f"; did you mean {table.aliases.get(str(name), near)!r}?" if near or str(name) in table.aliases else ""
        yield f"column {name!r} does not exist (in {count} of {len(rows)} rows){hint}"


def _array(column: Column, values: Sequence[object] | np.ndarray, problems: list[str]) -> pa.Array | None:
    """The column as an Arrow array; or None, and what is wrong with it appended to ``problems``."""
    plain: Any = values
    as_it_is = isinstance(values, np.ndarray) and values.dtype == column.type
    if not as_it_is and not {_EXACT.get(column.type), NoneType}.issuperset(map(type, values)):
        convert, plain = _converter(column.type), []
        for number, value in enumerate(values):
            try:
                plain.append(convert(value))
            except (ValueError, OverflowError):
                problems.append(f"column {column.name!r}: wanted {column.type}, got {_show(value)} in row {number}")
                return None
    try:
        found = pa.array(plain, arrow_type(column.type), from_pandas=True)  # NaN is null
    except (pa.ArrowException, ValueError, OverflowError) as error:
        problems.append(f"column {column.name!r}: wanted {column.type}, but {error}")
        return None
    if column.required and found.null_count:
        row = found.is_null().index(True).as_py()
        problems.append(f"column {column.name!r}: wanted a value in every row, got none in row {row}")
        return None
    return found


def _show(value: object) -> str:
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


@cache
def _converter(name: str) -> Callable[[object], object]:
    """The function that takes one value to the plain Python value of that type, or raises ValueError."""
    if name.startswith("list<"):
        element = _converter(name.removeprefix("list<").removesuffix(">"))
        return lambda value: _to_list(value, element)
    convert = _CONVERTERS[name]
    return lambda value: _to_scalar(value, convert)


def _to_scalar(value: object, convert: Callable[[Any], object]) -> object:
    if hasattr(value, "item"):  # a NumPy or torch scalar; more than one element raises
        try:
            value = value.item()
        except RuntimeError as error:
            raise ValueError(str(error)) from error
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return convert(value)


def _to_list(value: object, element: Callable[[object], object]) -> list[object] | None:
    if value is None:
        return None
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple):
        raise ValueError("not a list")
    return [element(entry) for entry in _flat(value)]


def _flat(values: Iterable[object]) -> Iterator[object]:
    """Nested lists, row by row."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _to_int(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("not a whole number")
    return value


def _to_float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    return float(value)


def _to_str(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a string")
    return str(value)


def _to_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not a truth value")
    return value


_EXACT: dict[str, type] = {"int64": int, "int32": int, "float64": float, "string": str, "bool": bool}
"""Type of a column → the Python type that Arrow takes as it is."""

_CONVERTERS: dict[str, Callable[[Any], object]] = {
    "int64": _to_int,
    "int32": _to_int,
    "float64": _to_float,
    "string": _to_str,
    "bool": _to_bool,
}
