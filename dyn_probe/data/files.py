"""Rows of a data file, one by one, each with the file and line it stands on."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dyn_probe.data.records import Skipped, SourceRow, shown
from dyn_probe.errors import BadInput, on_one_line

RowStream = Iterator[SourceRow | Skipped]
NO_OBJECT = "no JSON object"


def read_rows(path: Path) -> RowStream:
    """Every row of a file; a row that cannot be read comes as ``Skipped``.

    Raises:
        BadInput: no such file, an ending that is not in READERS, or a file that cannot be read.
    """
    if not path.is_file():
        raise BadInput(f"no such file: {path}")
    reader = READERS.get(ending(path.name))
    if reader is None:
        raise BadInput(f"cannot tell the format of {path}; wanted an ending of {', '.join(READERS)} (or .gz)")
    return reader(path)


def ending(name: str) -> str:
    """The ending of a name that tells its format; empty if none does."""
    bare = name.lower().removesuffix(".gz")
    packed = bare != name.lower()
    return next((one for one in READERS if bare.endswith(one) and not (packed and one == ".parquet")), "")


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _json(path: Path) -> RowStream:
    """One object per line, or one array of objects: distinguished by the first character."""
    number = 0
    try:
        with _opened(path) as file:
            first = _first_character(file, path)
            if first == b"[":
                yield from _array(_text(file.read(), path), path)
                return
            if path.name.lower().removesuffix(".gz").endswith(".json"):
                _refuse_one_object(file.read(), path)
                file.seek(0)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _line(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, f"{path}:{number}")
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"cannot read {path} after line {number}: {error}; wanted JSON lines in UTF-8") from error


def _first_character(file: BinaryIO, path: Path) -> bytes:
    """The first character that is no white space; the file is back at its beginning after."""
    start = file.read(4096)
    file.seek(0)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadInput(f"{path} is written in UTF-16; write it in UTF-8")
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _line(line: bytes, source: str) -> SourceRow | Skipped:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Skipped(source, "not UTF-8", f"byte {error.start} of the line")
    except (ValueError, RecursionError) as error:  # JSONDecodeError, or a number of too many digits
        return Skipped(source, "not JSON", f"{error or type(error).__name__}; wanted one JSON object per line")
    return _object(row, source)


def _object(row: Any, source: str) -> SourceRow | Skipped:
    if isinstance(row, dict):
        return SourceRow(source, row)
    return Skipped(source, NO_OBJECT, f"wanted an object of columns; got {shown(row, 30)}")


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadInput(f"{path}:{line}: not UTF-8 (byte {error.start} of the file)") from error


def _array(text: str, path: Path) -> RowStream:
    """Entries of one JSON array, each with the line that it begins on."""
    decoder, place, line = json.JSONDecoder(), text.index("[") + 1, 1
    counted = 0
    while True:
        place = _after_space(text, place, ",")
        if place >= len(text) or text[place] == "]":
            return
        line, counted = line + text.count("\n", counted, place), place
        try:
            row, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{path}:{line}: not JSON ({error}); what follows in the array cannot be read: repair it, or write "
                "one JSON object per line, where a broken row does not affect the others"
            ) from error
        yield _object(row, f"{path}:{line}")


def _after_space(text: str, place: int, also: str) -> int:
    while place < len(text) and (text[place].isspace() or text[place] in also):
        place += 1
    return place


def _refuse_one_object(content: bytes, path: Path) -> None:
    """Refuse a file that is one JSON object but no row: it is written by columns, or holds its rows in a field. One
    object on one line is a row, unless a field of it holds rows."""
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        return
    if b"\n" not in content.strip() and not (isinstance(whole, dict) and any(map(_holds_rows, whole.values()))):
        return
    fields = ", ".join(list(whole)[:6]) if isinstance(whole, dict) else type(whole).__name__
    raise BadInput(
        f"{path} is one JSON object (with {fields}), not rows; write one object per row, a line each, for example "
        "frame.to_json(path, orient='records', lines=True)"
    )


def _holds_rows(value: Any) -> bool:
    """Whether a value is a list of objects of which each has a side of a pair or a prompt."""
    objects = isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
    return objects and all({"chosen", "prompt", "rejected"} & set(one) for one in value)


def _separated(separator: str) -> Callable[[Path], RowStream]:
    """The reader of a table with a header line; an empty cell is null. A header that has semicolons and none of the
    separators is that of a table separated by semicolons, as spreadsheets write it where the comma is decimal."""

    def read(path: Path) -> RowStream:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        try:
            with _opened(path) as file:
                _first_character(file, path)
                text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
                head = text.readline()
                between = ";" if separator not in head and ";" in head else separator
                text.seek(0)
                yield from _table(csv.reader(text, delimiter=between, strict=True), path)
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise BadInput(f"cannot read {path}: {error}; wanted text in UTF-8") from error

    return read


def _table(cells: Any, path: Path) -> RowStream:
    begin, header = 0, None
    try:
        for row in cells:
            source, begin = f"{path}:{begin + 1}", cells.line_num
            if header is None:
                header = row
            elif len(row) == len(header):
                yield SourceRow(source, {name: cell or None for name, cell in zip(header, row, strict=True)})
            elif row:
                yield Skipped(source, "another number of cells than the header", f"{len(row)}, not {len(header)}")
    except csv.Error as error:
        raise BadInput(f"{path}:{begin + 1}: no table with a header row ({error})") from error


def _parquet(path: Path) -> RowStream:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches():
            for row in _plain_rows(batch):
                number += 1
                source = f"{path}:{number}"
                yield Skipped(source, "values out of range", row) if isinstance(row, str) else SourceRow(source, row)
    except (OSError, ValueError, ArithmeticError, LookupError, pa.ArrowException) as error:
        raise BadInput(
            f"cannot read {path}: {on_one_line(error) or type(error).__name__}; wanted a Parquet file"
        ) from error


def _plain_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Rows of an Arrow batch as Python values; what is wrong with it in place of one that Python cannot hold (a date
    beyond the year 9999, bytes that are no UTF-8)."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, ArithmeticError):
        singles = (batch.slice(place, 1) for place in range(batch.num_rows))
    for single in singles:
        try:
            yield from single.to_pylist()
        except (ValueError, ArithmeticError) as error:
            yield on_one_line(error, 80)


READERS: dict[str, Callable[[Path], RowStream]] = {
    ".jsonl": _json,
    ".ndjson": _json,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
"""Ending of the name → reader; all but Parquet may end in ``.gz`` too."""
