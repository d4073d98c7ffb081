"""``dyn-probe watch``: a run in the terminal while it is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from dyn_probe_cli.next_step import say_next


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Trace folder of a run that is being recorded.")],
    every: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Shortest time between two refreshes.")
    ] = 2.0,
) -> None:
    """Show a run while it is recorded: log-probabilities and their change, margin, cases, pushes and warnings. It ends
    with the run; Ctrl-C quits and leaves the run alone. Without a terminal, it prints one line per change."""
    from rich.console import Console

    from dyn_probe.report.monitor.screen import show
    from dyn_probe.report.monitor.watching import states

    try:
        show(states(run, every), Console(highlight=False))
    except KeyboardInterrupt:
        typer.echo("\nLeft; the run continues.")
        say_next("summary", run)
        return
    say_next("report", run)
