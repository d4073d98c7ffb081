"""Lines for the user, on standard error."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def say(line: str, everywhere: bool = False) -> None:
    """One line, with the program's name before it.

    Args:
        everywhere: from every process, not only from the first.
    """
    rank = os.environ.get("RANK", "0")
    if rank == "0" or everywhere:
        print(f"dyn-probe: {line}" + (f" (process {rank})" if rank != "0" else ""), file=sys.stderr, flush=True)


def next_step(folder: str | Path) -> str:
    """The command to type next."""
    return f"Next: dyn-probe report {folder}"
