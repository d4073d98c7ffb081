"""Limits that a run may not pass: for continuous integration, and to stop a training early.

A limit reads what was measured; where that is not recorded it is an error, never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dyn_probe.errors import BadInput, TraceError, on_one_line
from dyn_probe.report import pair_columns
from dyn_probe.report.basis import BASES, basis_of, case_of, completed
from dyn_probe.report.changes import starts_at_reference, starts_before_training
from dyn_probe.report.frames import Floats, finite, numbers
from dyn_probe.report.ranked import ENOUGH, pair_rows, run_change
from dyn_probe.report.run_facts import last_step
from dyn_probe.report.unfit import naming_runs
from dyn_probe.report.verdicts.verdict import count, percent, sig

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

BOTH_DOWN = 2
"""The case in which both log-probabilities fall."""


@dataclass(frozen=True)
class Measured:
    """What a limit is compared with: the number, how it is said, and what it was measured on."""

    value: float
    words: str
    basis: str
    n: int


@dataclass(frozen=True)
class Limit:
    """One limit: its option, the largest number that it may have, its unit, and how it is measured."""

    option: str
    unit: str
    measure: Callable[[Trace], Measured]


@dataclass(frozen=True)
class Outcome:
    """A limit as it was given, and what the run has."""

    limit: Limit
    most: float
    found: Measured

    @property
    def within(self) -> bool:
        """Whether the run is within the limit; a number equal to it is."""
        return self.found.value <= self.most

    @property
    def words(self) -> str:
        """One sentence with both numbers."""
        return f"{self.found.words}, {self.limit.option} allows {self.most:g} ({self.found.basis})"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "limit": self.limit.option.removeprefix("--").replace("-", "_"),
            "most": self.most,
            "value": self.found.value if math.isfinite(self.found.value) else None,
            "unit": self.limit.unit,
            "within": self.within,
            "rows": self.found.n,
            "basis": self.found.basis,
            "words": self.words,
        }


def measured_change(trace: Trace, side: str) -> tuple[Floats, str]:
    """Change per token of each pair's response since training began, and its basis in words; nats/token [pairs].

    From the start that the report's headline takes (``changes.run_start``) to the table `final`; without one, from the
    pair's first to its last recorded row, over pairs that were recorded twice. Where those are fewer than half of the
    pairs: the log-ratio to the reference at each pair's last row, if the reference is the model that training started
    from.

    Raises:
        TraceError: none of these was recorded.
    """
    rows = pair_rows(trace.pairs)
    to_end = finite(run_change(trace, rows, side))
    if len(to_end):
        begun = "before training" if starts_before_training(trace) else "the first recorded row of each"
        return to_end, _basis(to_end, f"from {begun} to the end of the run")
    again = finite(numbers(rows[rows["rows"] > 1], f"recorded_change_{side}"))
    ratios = finite(pair_columns.since_reference(rows, side))
    moved = len(ratios) and trace.pairs["step"].nunique() > 1
    if moved and len(again) < ENOUGH * len(rows) and starts_at_reference(trace.pairs):
        return ratios, _basis(ratios, "since the start of training, which is the reference")
    if len(again):
        return again, _basis(again, "from the first to the last recorded row of each")
    raise TraceError(
        f"{trace.path}: no change of {side} has been measured: no pair was recorded twice, there are no rows in the "
        "table final, and the reference, if there is one, is not the model that training started from; check again "
        "once pairs recur, or record with --final-pairs above 0"
    )


def _basis(change: Floats, words: str) -> str:
    return f"median of {count(len(change), 'pair')}, {words}"


def _moved(side: str, up: bool) -> Callable[[Trace], Measured]:
    """The median change of one side, counted in the direction that a limit forbids."""

    def measure(trace: Trace) -> Measured:
        change, basis = measured_change(trace, side)
        middle = float(np.median(change))
        direction = "rose" if middle > 0 else "fell" if middle < 0 else "stayed"
        words = f"{side} {direction} by {sig(abs(middle))} nats/token" if middle else f"{side} did not move"
        return Measured(middle if up else -middle, words, basis, len(change))

    return measure


def _both_down(trace: Trace) -> Measured:
    """The share of the rows with a case that are in case 2, on the run's basis. Of the steps in which cases were
    measured, at least ENOUGH of the rows must have one."""
    pairs = completed(trace)
    basis = BASES[basis_of(pairs)]
    cases = finite(case_of(pairs, basis.name))
    if not len(cases):
        raise TraceError(
            f"{trace.path}: no case was recorded, so the share of rows in which both log-probabilities fall is not "
            "known; record gradients, or measure with --realised"
        )
    measured = int(pairs["step"].isin(pairs["step"][np.isfinite(case_of(pairs, basis.name))]).sum())
    if len(cases) < ENOUGH * measured:
        raise TraceError(
            f"{trace.path}: only {len(cases)} of {count(measured, 'row')} have a case {basis.words}, so the share of "
            "rows in which both log-probabilities fall is not known; look for non-finite losses or gradients"
        )
    share = float((cases == BOTH_DOWN).mean())
    words = f"{percent(share)} of {count(len(cases), 'row')} lowered both"
    return Measured(share, words, f"case 2 {basis.words}", len(cases))


def _diverged(trace: Trace) -> Measured | None:
    """What is beyond every limit: pairs whose log-probabilities were not finite when they were measured last."""
    columns = ["pair_id", *(f"logp_{side}" for side in pair_columns.SIDES)]
    rows = trace.pairs.sort_values("step", kind="stable")
    rows = rows[rows["pair_id"].notna() & np.isfinite(numbers(rows, "len_chosen"))]  # others were not evaluated
    last = pd.concat([rows[columns], trace.final[columns]]).drop_duplicates("pair_id", keep="last")
    lost = int((~np.isfinite([numbers(last, name) for name in columns[1:]]).all(0)).sum())
    words = f"{lost:,} of {count(len(last), 'pair')} have a non-finite log-probability at their last row"
    return Measured(math.inf, words, "the run diverged", len(last)) if lost else None


LIMITS: dict[str, Limit] = {
    "max_fall": Limit("--max-fall", "nats/token", _moved("chosen", up=False)),
    "max_rejected_rise": Limit("--max-rejected-rise", "nats/token", _moved("rejected", up=True)),
    "max_both_down": Limit("--max-both-down", "share", _both_down),
}
"""Name → limit; `dyn-probe check` takes each as an option."""


def hold_to(trace: Trace, given: Mapping[str, float | None]) -> list[Outcome]:
    """The run held to every limit that was given, in the order of LIMITS; a run that diverged is beyond each.

    Args:
        trace: a run, closed or still being written.
        given: name of a limit → the largest number allowed; None is not given.

    Raises:
        BadInput: no limit was given, or one that no run could pass or fail.
        TraceError: what a limit reads was not recorded.
    """
    wanted = {name: given[name] for name in LIMITS if given.get(name) is not None}
    _refuse(wanted)
    with naming_runs([trace.path]):
        diverged = _diverged(trace)
        return [
            Outcome(LIMITS[name], most, diverged or LIMITS[name].measure(trace))
            for name, most in wanted.items()
            if most is not None
        ]


def _refuse(wanted: Mapping[str, float | None]) -> None:
    if not wanted:
        raise BadInput(
            "wanted at least one limit; write for example: dyn-probe check RUN --max-fall 0.1 --max-rejected-rise 0 "
            "--max-both-down 0.5 (nats/token, nats/token, share of rows)"
        )
    for name, most in wanted.items():
        limit = LIMITS[name]
        if most is None or not math.isfinite(most):
            raise BadInput(f"{limit.option} must be a finite number ({limit.unit}); got {most}")
        if limit.unit == "share" and not 0 <= most <= 1:
            raise BadInput(f"{limit.option} is a share from 0 to 1 (0.5 for half of the rows); got {most:g}")


def verdict_lines(trace: Trace, found: list[Outcome]) -> list[str]:
    """One line where the run is within every limit, else a line for each that it is beyond."""
    beyond = [one for one in found if not one.within]
    where = f"{on_one_line(trace.path)} ({_state(trace)})"
    if beyond:
        return [f"beyond: {where}: {one.words}" for one in beyond]
    return [f"within: {where}: {'; '.join(one.words for one in found)}"]


def verdict_json(trace: Trace, found: list[Outcome]) -> dict[str, Any]:
    """The same with all numbers, as plain JSON values."""
    return {
        "run": str(trace.path),
        "status": trace.about.status,
        "last_step": last_step(trace),
        "within": all(one.within for one in found),
        "limits": [one.as_json() for one in found],
    }


def _state(trace: Trace) -> str:
    """Status and last step: a run that stopped or goes on is judged by what it has recorded."""
    step = last_step(trace)
    return f"{trace.about.status}, {'no step yet' if step is None else f'step {step}'}"
