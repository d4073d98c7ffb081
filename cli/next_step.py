"""The next command to type."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer


def say_next(command: str, *runs: Path | str) -> None:
    """Print the command that carries on from here, ready to be copied."""
    typer.echo(f"Next: dyn-probe {command} {shlex.join(map(str, runs))}")
