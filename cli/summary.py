"""``dyn-probe summary``: a recorded run in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from dyn_probe_cli.next_step import say_next


def summary(run: Annotated[Path, typer.Argument(metavar="RUN", help="Trace folder.")]) -> None:
    """Print what happened in a run: start and end, verdicts, and what to change."""
    from rich.console import Console

    from dyn_probe.report.summary import summary_lines
    from dyn_probe.trace.reader import load_trace

    console = Console(highlight=False)
    for line in summary_lines(load_trace(run)):
        console.print(line, soft_wrap=not console.is_terminal)
    typer.echo()
    say_next("pairs", run)
