"""The next command to type."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import typer


def say_next(command: str, *runs: Path | str) -> None:
    """Print the next command, ready to be copied. With several processes, only the first prints."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"Next: dyn-probe {command} {shlex.join(map(str, runs))}")
