"""Lines for the user, on standard error."""

from __future__ import annotations

import os
import sys


def say(line: str, everywhere: bool = False) -> None:
    """One line, with the program's name before it.

    Args:
        everywhere: from every process, not only from the first.
    """
    rank = os.environ.get("RANK", "0")
    if rank == "0" or everywhere:
        print(f"dyn-probe: {line}" + (f" (process {rank})" if rank != "0" else ""), file=sys.stderr, flush=True)
