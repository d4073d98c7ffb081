"""Lines for the user, on standard error."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def say(line: str, everywhere: bool = False) -> None:
    """A separate line, which breaks no progress bar, with the program's name before it.

    Args:
        everywhere: from every process, not only from the first.
    """
    rank = os.environ.get("RANK", "0")
    if rank == "0" or everywhere:
        text = f"dyn-probe: {line}" + (f" (process {rank})" if rank != "0" else "")
        bars = getattr(sys.modules.get("tqdm.std"), "tqdm", None)  # the trainer's; nothing is imported for it
        # Without a bar of its own, tqdm's write would fix the start method of multiprocessing.
        if bars is not None and getattr(bars, "_instances", None):
            bars.write(text, file=sys.stderr)
            sys.stderr.flush()
        else:
            print(text, file=sys.stderr, flush=True)


def next_step(folder: str | Path) -> str:
    """The command to type next."""
    return f"Next: dyn-probe report {folder}"
