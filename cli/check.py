"""``dyn-probe check``: a run held to limits, for continuous integration and for stopping early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

PASSED_A_LIMIT = 3
"""Exit code where the run is beyond a limit."""


def check(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Trace folder; the run may still be going on.")],
    max_fall: Annotated[
        float | None,
        typer.Option(
            metavar="NATS",
            help="Most that chosen may fall, median of the pairs, nats/token.",
            show_default="not checked",
        ),
    ] = None,
    max_rejected_rise: Annotated[
        float | None,
        typer.Option(
            metavar="NATS",
            help="Most that rejected may rise, median of the pairs, nats/token.",
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
    """Hold a run to limits: exit code 0 within all of them, 3 beyond one, with the reason; 2 where a limit reads what
    was not recorded. For continuous integration, and for stopping a training that is still going on."""
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
