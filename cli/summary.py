"""``dyn-probe summary``: a recorded run in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from dyn_probe_cli.next_step import say_next


def summary(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Trace folder; several are compared.")],
    judged: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="AlpacaEval annotations or leaderboard of the runs' outputs, to compare as well."
        ),
    ] = None,
) -> None:
    """Print what happened in a run, or which of several runs is healthier and why, with their numbers side by side."""
    from rich.console import Console

    from dyn_probe.report.outputs.judged import check_judged
    from dyn_probe.report.side_by_side.opened import opened
    from dyn_probe.report.side_by_side.terminal import comparison_lines
    from dyn_probe.report.summary import summary_lines

    check_judged(len(runs), judged)
    console, traces = Console(highlight=False), opened(runs)
    lines = summary_lines(*traces.values()) if len(traces) == 1 else comparison_lines(traces, judged)
    for line in lines:
        console.print(line, soft_wrap=not console.is_terminal)
    typer.echo()
    say_next("pairs" if len(runs) == 1 else "report", *runs)
