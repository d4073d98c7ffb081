"""The files of a trace folder: their names, and which of them are there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dyn_probe.errors import TraceError
from dyn_probe.trace.schema import TABLES

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


def spare_file(run: Path) -> Path:
    """Room that a recording keeps on the disk, so that ``run.json`` can be written where there is none left."""
    return run / STREAMS / "spare"


def refuse_link_out(run: Path, path: Path) -> None:
    """Raise a TraceError where the path is a link that leads out of the trace's folder."""
    if not path.resolve().is_relative_to(run.resolve()):
        raise TraceError(f"{path} is a link that leads out of the trace's folder; put the file itself there")


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
    yield from (file for file in (spare_file(run), scratch_file(run / RUN_FILE), run / RUN_FILE) if file.exists())


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TraceError(f"wanted a folder of streams; {folder} cannot be listed: {error.strerror or error}") from error


def fingerprint(run: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of every file of a trace: another one where anything was written."""
    found = []
    for path in own_files(run):
        with suppress(OSError):  # merged and removed meanwhile
            about = path.stat()
            found.append((path.name, about.st_size, about.st_mtime_ns))
    return tuple(found)
