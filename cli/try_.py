"""``dyn-probe try``: a run's best remedies, trained and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from dyn_probe_cli.next_step import say_next


def try_(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Trace folder.")],
    top: Annotated[int, typer.Option(min=1, help="Number of remedies, from the top of the fix table.")] = 3,
    steps: Annotated[
        int | None,
        typer.Option(min=2, help="Optimizer steps of each remedy; the run itself is then retrained for as many.",
                     show_default="the run's own"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the trial runs.", show_default="RUN/tried")
    ] = None,
    every: Annotated[
        bool, typer.Option("--every", help="Try every applicable remedy, including those estimated to do harm.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace earlier trial runs.")] = False,
) -> None:  # fmt: skip
    """Train the best remedies of a run's fix table from the run's starting point, and print measured next to estimated
    changes.

    A recorded external training cannot be restarted from here: the settings to change are printed instead.
    """
    from rich.console import Console

    from dyn_probe.studies import trying
    from dyn_probe.trace.reader import load_trace

    trace = load_trace(run)
    if trying.attached(trace):
        typer.echo("\n".join(trying.commands(trace, trying.fix_table(trace)[:top]) or [trying.why_none(trace)]))
        return
    base, tried = trying.try_remedies(run, top, steps, out, force, typer.echo, every)
    console = Console(highlight=False)
    for line in trying.tried_lines(base, tried):
        console.print(line, soft_wrap=not console.is_terminal)
    say_next("report", (out or run / trying.FOLDER) / tried[0].estimate.key)
