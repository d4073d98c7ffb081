"""The tables of a run as files of other programs: CSV, JSON lines, Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dyn_probe.report.export.cells import csv_bytes, plain
from dyn_probe.trace.failures import naming
from dyn_probe.trace.schema import TABLES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

CHUNK = 10_000
"""Rows that are held as text at once."""

Write = Callable[[pa.Table, Path], None]


def write_csv(table: pa.Table, path: Path) -> None:
    """Comma-separated values in UTF-8 with a header: null is an empty cell, a list is written as JSON, and text that a
    spreadsheet would take for a formula has an apostrophe before it."""
    with path.open("xb") as file:
        for start in range(0, max(1, table.num_rows), CHUNK):
            lines = csv_bytes(_flat(table.slice(start, CHUNK)))
            file.write(lines if start == 0 else lines.partition(b"\n")[2])


def write_json(table: pa.Table, path: Path) -> None:
    """One JSON object per line: null and non-finite numbers are null, every other number is exact."""
    with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
        for batch in table.to_batches(max_chunksize=CHUNK):
            for row in batch.to_pylist():
                file.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n")


def write_parquet(table: pa.Table, path: Path) -> None:
    """One Parquet file; each column's unit and meaning are the metadata of its field."""
    with path.open("xb") as file:
        pq.write_table(table, file)


ENDINGS: dict[str, tuple[str, Write]] = {
    "csv": ("csv", write_csv),
    "json": ("jsonl", write_json),
    "parquet": ("parquet", write_parquet),
}
"""Format → ending of its files, and what writes one."""


def table_names(trace: Trace, form: str) -> list[str]:
    """Names of the files that ``write_tables`` writes."""
    return [f"{name}.{ENDINGS[form][0]}" for name in TABLES if trace.arrow(name).num_rows]


def write_tables(trace: Trace, out: Path, form: str) -> str:
    """Every table that has rows, in a file of its own name; returns what was written, in words."""
    ending, write = ENDINGS[form]
    rows = {}
    for name in TABLES:
        table = trace.arrow(name)
        if table.num_rows:
            path = out / f"{name}.{ending}"
            with naming(path):
                write(table, path)  # refuses a file or a link that lies there
            rows[name] = table.num_rows
    return ", ".join(f"{name} ({count:,} {'row' if count == 1 else 'rows'})" for name, count in rows.items())


def _flat(table: pa.Table) -> pd.DataFrame:
    """A table of cells: lists as JSON, whole numbers without a decimal point where the column has nulls."""
    whole = {pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame = table.to_pandas(types_mapper=whole.get, ignore_metadata=True)
    lists = [field.name for field in table.schema if pa.types.is_list(field.type)]
    written = {name: [_json(value) for value in table[name].to_pylist()] for name in lists}
    return frame.assign(**written)


def _json(value: list[object] | None) -> str | None:
    return None if value is None else json.dumps(plain(value), ensure_ascii=False)
