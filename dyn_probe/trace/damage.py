"""What of a trace cannot be read: damaged parts, by file and place, with the rows that are missing; and what would take
more memory than there is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dyn_probe.errors import TraceError

REFUSED = (pa.ArrowException, OSError, ValueError, ArithmeticError, LookupError, TypeError, MemoryError)
"""What Arrow raises for bytes that it cannot read."""


@dataclass(frozen=True)
class Damage:
    """A part of a file whose check fails.

    Args:
        file: its path below the trace's folder.
        what: which part of it (bytes, batch, row group, column), and what is wrong with it.
        rows: rows that are missing by it; None where that cannot be told.
    """

    file: str
    what: str
    rows: int | None

    def __str__(self) -> str:
        counts = {None: "an unknown number of rows is missing", 0: "no row is missing", 1: "1 row is missing"}
        return f"{self.file}: {self.what}; {counts.get(self.rows) or f'{self.rows:,} rows are missing'}"


def warn_of(run: Path, found: Iterable[Damage]) -> None:
    """One ``RuntimeWarning`` for each damaged part; what is whole has been read."""
    for one in found:
        warnings.warn(f"{run}: {one}", RuntimeWarning, stacklevel=5)


CONTAINER = Path("/sys/fs/cgroup")
ROOM = 0.5
"""Share of the free memory that one table may take."""
SMALL = 2**26
"""Bytes that a table may always take: what is free is not known to so much."""
LONGEST_TEXT = 2**26
"""Bytes that ``run.json`` may have."""


def free_memory() -> int | None:
    """Bytes that this process can take: what the system has free, less where it is limited (as containers are; pages of
    files that can be given back count as free); None where that is not known."""
    found = []
    with suppress(OSError, TypeError, ValueError):
        told = Path("/proc/meminfo").read_text(encoding="ascii")
        found.append(1024 * int(re.search(r"MemAvailable:\s+(\d+) kB", told)[1]))  # type: ignore[index]
    with suppress(OSError, ValueError):
        group = CONTAINER
        limit, taken = ((group / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        kept = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        back = sum(int(kept.get(name, 0)) for name in ("inactive_file", "active_file", "slab_reclaimable"))
        found.append(int(limit) - int(taken) + back)
    with suppress(ImportError, OSError, ValueError):
        import resource

        limited, _ = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        found += [] if limited == resource.RLIM_INFINITY else [limited - pages * resource.getpagesize()]
    return max(0, min(found)) if found else None


def refuse_large(what: str, size: int) -> None:
    """Refuse what would take more memory than there is room for, before any of it is taken.

    Raises:
        TraceError: says how much, and how to read a part.
    """
    free = free_memory()
    if free is not None and size > max(SMALL, ROOM * free):
        raise TraceError(
            f"{what} would take {size / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free; read a part "
            'of the trace: load_trace(run, columns=["pairs.step", "pairs.loss"], steps=slice(0, 1000))'
        )
