"""How a run stands, in the numbers that one watches while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.errors import TraceError
from dyn_probe.report.basis import BASES, basis_of, completed
from dyn_probe.report.frames import last_tenth
from dyn_probe.report.monitor.limits import measured_change
from dyn_probe.report.overview import overview
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.push_parts import means, of_side, ordered
from dyn_probe.report.run_facts import last_step, title
from dyn_probe.report.unfit import naming_runs
from dyn_probe.report.verdicts import verdicts
from dyn_probe.trace.schema import CASES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

SHOWN_WARNINGS = 3
NAN = float("nan")


@dataclass(frozen=True)
class LiveState:
    """A run as it stands. Log-probabilities, margin, accuracy and case shares are those of the last tenth of its steps;
    what was not recorded is NaN or empty.

    Args:
        step: the last recorded step, None before the first row.
        planned: steps that the run will make, where it says so.
        logp: side → median log-probability, nats/token.
        change: side → median measured change of the pairs, nats/token.
        change_basis: from what to what that was measured.
        cases: number of a case → share of the rows.
        cases_basis: on which basis.
        pushes: what pushes chosen, the largest first: part, mean in nats a step.
        warnings: the first warnings of the report.
        advice: what to change, by them.
    """

    title: str
    status: str
    reason: str
    step: int | None
    planned: int | None
    logp: dict[str, float]
    change: dict[str, float]
    change_basis: str
    margin: float
    accuracy: float
    cases: dict[int, float]
    cases_basis: str
    pushes: tuple[tuple[str, float], ...]
    warnings: tuple[str, ...]
    advice: tuple[str, ...]


def live_state(trace: Trace) -> LiveState:
    """How a run stands, closed or still being written."""
    with naming_runs([trace.path]):
        lines = {line.key: line.last for line in overview(trace)}
        changes = {side: _change(trace, side) for side in SIDES}
        found = [one for one in verdicts(trace) if one.level == "warning" and one.topic != "trust"]
        return LiveState(
            title=title(trace),
            status=trace.about.status,
            reason=trace.about.reason or "",
            step=last_step(trace),
            planned=_planned(trace),
            logp={side: lines.get(f"logp_{side}", NAN) for side in SIDES},
            change={side: value for side, (value, _) in changes.items()},
            change_basis=changes["chosen"][1],
            margin=lines.get("margin", NAN),
            accuracy=lines.get("accuracy", NAN),
            cases={number: lines.get(f"case_{number}", NAN) for number in CASES},
            cases_basis=BASES[basis_of(completed(trace))].words,
            pushes=tuple(ordered(means(last_tenth(of_side(trace, "chosen"))))),
            warnings=tuple(one.sentence for one in found[:SHOWN_WARNINGS]),
            advice=tuple(dict.fromkeys(knob for one in found[:SHOWN_WARNINGS] for knob in one.knobs))[:1],
        )


def _change(trace: Trace, side: str) -> tuple[float, str]:
    try:
        change, basis = measured_change(trace, side)
    except TraceError:
        return NAN, "no pair has been seen twice yet"
    return float(np.median(change)), basis


def _planned(trace: Trace) -> int | None:
    """Steps that the built-in loop was asked for; other recordings do not say."""
    steps = trace.about.config.get("steps")
    return steps if isinstance(steps, int) and steps > 0 else None
