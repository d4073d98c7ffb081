"""``dyn-probe check``: a run held to limits, for continuous integration and for stopping early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

PASSED_A_LIMIT = 3
"""Exit code where the run is beyond a limit."""


def check(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Trace folder; the run may still be in progress.")],
    max_fall: Annotated[
        float | None,
        typer.Option(
            metavar="NATS",
            help="Largest allowed fall of chosen (median over pairs), nats/token.",
            show_default="not checked",
        ),
    ] = None,
    max_rejected_rise: Annotated[
        float | None,
        typer.Option(
            metavar="NATS",
            help="Largest allowed rise of rejected (median over pairs), nats/token.",
            show_default="not checked",
        ),
    ] = None,
    max_both_down: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Largest share of rows in which both log-probabilities fall, 0 to 1.",
            show_default="not checked",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Check a run against limits: exit code 0 if it is within all of them, 3 if it exceeds one, with the reason; 2 if a
    limit needs what was not recorded. For continuous integration, and for stopping a run in progress."""
    from dyn_probe.report.monitor.limits import hold_to, verdict_json, verdict_lines
    from dyn_probe.trace.reader import load_trace

    trace = load_trace(run)
    found = hold_to(
        trace, {"max_fall": max_fall, "max_rejected_rise": max_rejected_rise, "max_both_down": max_both_down}
    )
    if as_json:
        typer.echo(json.dumps(verdict_json(trace, found), indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(verdict_lines(trace, found)))
    if not all(one.within for one in found):
        raise typer.Exit(PASSED_A_LIMIT)
