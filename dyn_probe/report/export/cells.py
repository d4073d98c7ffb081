"""Values as other programs take them: plain JSON, and cells of CSV that no spreadsheet takes for a formula."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from dyn_probe.errors import escaped

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula, or drops before one."""


def plain(value: Any) -> Any:
    """JSON values: NaN and infinite numbers become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def neutral(value: object) -> object:
    """A cell that no spreadsheet takes for a formula: text that begins like one has an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def csv_bytes(rows: Iterable[Mapping[str, object]] | pd.DataFrame) -> bytes:
    """Rows (or a frame without its index) as CSV in UTF-8 (RFC 4180: lines end in CRLF), each cell ``neutral``."""
    if isinstance(rows, pd.DataFrame):
        texts = map(str, rows.select_dtypes(exclude=["number", "bool"]))
        safe = rows.assign(**{name: rows[name].astype(object).map(neutral) for name in texts})
        return safe.to_csv(index=False, lineterminator="\r\n").encode("utf-8", "replace")
    rows = list(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: neutral(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode("utf-8", "replace")


def terminal_csv(frame: pd.DataFrame) -> str:
    """A frame as CSV for standard output: cells are ``neutral``, and control characters in them stand as escapes."""
    texts = list(map(str, frame.select_dtypes(exclude=["number", "bool"])))
    shown = {name: frame[name].map(lambda one: escaped(one) if isinstance(one, str) else one) for name in texts}
    return csv_bytes(frame.assign(**shown)).decode("utf-8").replace("\r\n", "\n")


def terminal_json(text: str) -> str:
    """JSON for standard output: what steers a terminal is written as JSON escapes it; the values are the same."""
    units = ((one, one.encode("utf-16-be", "surrogatepass").hex()) for one in text)
    return "".join(
        one if one.isprintable() or one == "\n" else "".join(f"\\u{code[k : k + 4]}" for k in range(0, len(code), 4))
        for one, code in units
    )
