"""``dyn-probe report``: a recorded run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from dyn_probe_cli.next_step import say_next


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Trace folders, or reference:NAME for one of the package; several are compared with the first.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the report.", show_default="RUN/report")
    ] = None,
    judged: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="AlpacaEval annotations or leaderboard of the runs' outputs, to compare as well."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds other files.")] = False,
) -> None:
    """Write the verdicts, figures and ranked pairs of a run, or a comparison of several runs, as one HTML file."""
    from dyn_probe.report.build import build_report

    page = build_report(runs, out=out, force=force, judged=judged)
    typer.echo(f"Report: {page}")
    say_next("summary", runs[0])
