"""The files of a trace folder: their names, and the atomic reading and writing of ``run.json``."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dyn_probe.errors import TraceError
from dyn_probe.trace.failures import naming
from dyn_probe.trace.schema import SCHEMA_VERSION, TABLES

RUN_FILE = "run.json"
STREAMS = "streams"
_STREAM = re.compile(r"([a-z_]+)-rank(\d+)(?:-seg(\d+))?\.arrow")
_OPEN_MARK = re.compile(r"rank(\d+)(?:-seg(\d+))?\.open")
_LOST_MARK = re.compile(r"rank(\d+)(?:-seg(\d+))?\.lost")


@dataclass(frozen=True, order=True)
class StreamName:
    """``TABLE-rankK.arrow`` of the first recording, ``TABLE-rankK-segN.arrow`` of its N-th resume."""

    segment: int
    rank: int
    table: str

    @property
    def file(self) -> str:
        return f"{self.table}-{_process(self.rank, self.segment)}.arrow"


def _process(rank: int, segment: int) -> str:
    return f"rank{rank}" + (f"-seg{segment}" if segment else "")


def parquet_file(run: Path, table: str) -> Path:
    """The table's merged file."""
    return run / f"{table}.parquet"


def scratch_file(path: Path) -> Path:
    """Where ``path`` is written before it takes its name."""
    return path.with_name(path.name + ".tmp")


def open_mark(run: Path, rank: int, segment: int) -> Path:
    """A file that stands as long as a process other than rank 0 records."""
    return run / STREAMS / f"{_process(rank, segment)}.open"


def lost_mark(run: Path, rank: int, segment: int) -> Path:
    """What a process other than rank 0 could not write, for rank 0 to put into ``run.json``."""
    return run / STREAMS / f"{_process(rank, segment)}.lost"


def list_streams(run: Path) -> list[StreamName]:
    """All streams of the folder: by segment, then rank, then table."""
    matches = (_STREAM.fullmatch(name) for name in _listing(run / STREAMS))
    names = (StreamName(int(m[3] or 0), int(m[2]), m[1]) for m in matches if m and m[1] in TABLES)
    return sorted(names)


def list_open_marks(run: Path, segment: int | None = None) -> list[Path]:
    """The marks of processes that have not closed: of all recordings, or of one."""
    return _marks(run, _OPEN_MARK, segment)


def list_lost_marks(run: Path) -> list[Path]:
    """What processes other than rank 0 left because they lost rows."""
    return _marks(run, _LOST_MARK, None)


def _marks(run: Path, pattern: re.Pattern[str], segment: int | None) -> list[Path]:
    matches = (pattern.fullmatch(name) for name in _listing(run / STREAMS))
    return [run / STREAMS / m[0] for m in matches if m and segment in (None, int(m[2] or 0))]


def own_files(run: Path) -> Iterator[Path]:
    """The existing files that a trace consists of; ``run.json`` comes last."""
    for table in TABLES:
        path = parquet_file(run, table)
        yield from (file for file in (path, scratch_file(path)) if file.exists())
    yield from (run / STREAMS / name.file for name in list_streams(run))
    yield from list_open_marks(run)
    yield from list_lost_marks(run)
    yield from (file for file in (scratch_file(run / RUN_FILE), run / RUN_FILE) if file.exists())


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def now() -> str:
    """The time as it stands in run.json: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_manifest(run: Path) -> dict[str, Any]:
    """``run.json`` of a trace that this version can read.

    Raises:
        TraceError: there is no such folder, it is no trace, or a newer dyn-probe wrote it.
    """
    wanted = "wanted the folder of a trace, as `dyn-probe record --out` writes it"
    if not run.is_dir():
        raise TraceError(f"{wanted}; {run} {'is a file' if run.exists() else 'does not exist'}")
    try:
        manifest = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TraceError(f"{wanted}; {run} has no {RUN_FILE}") from None
    except (OSError, ValueError) as error:
        raise TraceError(f"{wanted}; {run / RUN_FILE} cannot be read as JSON: {error}") from error
    if not _is_manifest(manifest):
        raise TraceError(
            f"{wanted}; {run / RUN_FILE} is something else's: it lacks schema_version, dyn_probe_version or status"
        )
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise TraceError(
            f"{run} has schema_version {manifest['schema_version']}, and this version reads up to "
            f"{SCHEMA_VERSION}; install the dyn-probe that wrote it ({manifest['dyn_probe_version']}), "
            f"or a newer one"
        )
    return manifest


def _is_manifest(content: object) -> bool:
    if not isinstance(content, dict) or type(content.get("schema_version")) is not int:
        return False
    return isinstance(content.get("status"), str) and isinstance(content.get("dyn_probe_version"), str)


def write_manifest(run: Path, manifest: Mapping[str, object]) -> None:
    """Put ``run.json`` in place in one move: a reader sees the old one or the new one."""
    path = run / RUN_FILE
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with naming(path):
        scratch_file(path).write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(scratch_file(path), path)


def plain(fields: Mapping[str, object]) -> dict[str, Any]:
    """Manifest fields as JSON values: paths as text, NumPy and torch scalars as numbers, NaN as null.

    Raises:
        TraceError: values that JSON cannot hold, all of them by name.
    """
    problems: list[str] = []
    content = _plain(fields, "", problems)
    if problems:
        raise TraceError(
            "run.json takes text, numbers, truth values, null, lists and mappings; came " + ", ".join(problems)
        )
    return content


def _plain(value: Any, name: str, problems: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, f"{name}.{key}".lstrip("."), problems) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{name}[{number}]", problems) for number, entry in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), name, problems)
    problems.append(f"{name} = {value!r} ({type(value).__name__})")
    return None
