"""Rows of a data file, one by one, each with the file and line it stands on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dyn_probe.errors import BadInput

Rows = Iterator[tuple[str, dict[str, Any]]]


def read_rows(path: Path) -> Rows:
    """(``FILE:LINE``, row) of every row of a JSON-lines or Parquet file.

    Raises:
        BadInput: no such file, an ending that is not in READERS, or a file that cannot be read (with the line).
    """
    if not path.is_file():
        raise BadInput(f"no such file: {path}")
    reader = next((read for ending, read in READERS.items() if path.name.endswith(ending)), None)
    if reader is None:
        raise BadInput(f"cannot tell the format of {path}; wanted a name that ends in {', '.join(READERS)}")
    return reader(path)


def _json_lines(path: Path) -> Rows:
    opener: Callable[..., Any] = gzip.open if path.name.endswith(".gz") else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", _object(line, f"{path}:{number}")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path} after line {number}: {error}; wanted JSON lines in UTF-8") from error


def _object(line: str, source: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput(f"{source}: not JSON ({error}); wanted one JSON object per line") from error
    if not isinstance(row, dict):
        raise BadInput(f"{source}: wanted one JSON object per line; got a {type(row).__name__}")
    return row


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"cannot read {path}: {error}; wanted a Parquet file") from error


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".jsonl.gz": _json_lines,
    ".parquet": _parquet,
}
"""Ending of the name → reader."""
