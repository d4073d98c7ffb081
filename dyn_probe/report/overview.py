"""The run in a dozen numbers: what it was at the start and what it is at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report import pair_columns
from dyn_probe.report.agreement import run_synchrony
from dyn_probe.report.basis import BASES, basis_of, completed
from dyn_probe.report.frames import Floats, finite, half_error, half_errors, median, numbers, share, tenths
from dyn_probe.trace.schema import CASES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


@dataclass(frozen=True)
class Measure:
    """One number over some rows of the table `pairs`: its key for programs, name, unit, formula and summary."""

    key: str
    name: str
    unit: str
    formula: str
    values: Callable[[pd.DataFrame], Floats]
    summary: Callable[[Floats], float] = median


@dataclass(frozen=True)
class Line:
    """A measure of a run: over the first and the last tenth of its steps (`first` NaN with a single step)."""

    key: str
    name: str
    unit: str
    formula: str
    first: float
    last: float
    errors: tuple[float, float] = (float("nan"), float("nan"))
    """What half precision may have done to the two; NaN where that was not measured."""


def _column(name: str) -> Callable[[pd.DataFrame], Floats]:
    return lambda pairs: numbers(pairs, name)


def _per_token(side: str) -> Callable[[pd.DataFrame], Floats]:
    return lambda pairs: pair_columns.per_token(pairs, side)


def _against(side: str) -> Callable[[pd.DataFrame], Floats]:
    return lambda pairs: pair_columns.since_reference(pairs, side)


def _positive(values: Floats) -> float:
    return share(finite(values) > 0)


def _equal(number: int) -> Callable[[Floats], float]:
    return lambda values: share(finite(values) == number)


SIDE_LETTERS = {"chosen": ("a", "r_w", "n_w", "g_w", "d_w"), "rejected": ("b", "r_l", "n_l", "g_l", "d_l")}

MEASURES: tuple[Measure, ...] = (
    *(
        Measure(f"logp_{side}", f"log-prob of {side}", "nats/token", f"median {logp}/{length}", _per_token(side))
        for side, (logp, _, length, _, _) in SIDE_LETTERS.items()
    ),
    *(
        Measure(
            f"reference_{side}", f"{side} vs. reference", "nats/token", f"median ({logp} − {ref})/{length}",
            _against(side),
        )
        for side, (logp, ref, length, _, _) in SIDE_LETTERS.items()
    ),
    Measure(
        "margin",
        "margin",
        "nats",
        "median score_chosen − score_rejected; no score recorded: (a − r_w) − (b − r_l), no reference: a − b",
        pair_columns.margin,
    ),
    Measure("accuracy", "accuracy", "share", "share of rows with margin > 0", pair_columns.margin, _positive),
    Measure(
        "log_ratio_margin",
        "log-ratio margin",
        "nats/sequence",
        "median (a − r_w) − (b − r_l); no reference: change of a − b since the pair was first recorded",
        pair_columns.log_ratio_margin,
    ),
    Measure(
        "log_ratio_accuracy",
        "log-ratio accuracy",
        "share",
        "share of rows with log-ratio margin > 0",
        pair_columns.log_ratio_margin,
        _positive,
    ),
    Measure("loss", "loss", "nats", "median ℓ", _column("loss")),
    *(
        Measure(
            f"grad_norm_{side}", f"gradient norm of {side}", "nats/parameter unit", f"median ‖{grad}‖",
            _column(f"grad_norm_{side}"),
        )
        for side, (_, _, _, grad, _) in SIDE_LETTERS.items()
    ),
    Measure("cosine", "cosine", "1", "median ⟨g_w,g_l⟩/(‖g_w‖‖g_l‖)", _column("grad_cosine")),
    *(
        Measure(f"pull_{side}", f"pull on {side}", "1", f"median {pull}", _column(f"pull_{side}"))
        for side, (_, _, _, _, pull) in SIDE_LETTERS.items()
    ),
    *(
        Measure(key, name, unit, f"median {pair_columns.DERIVED[key].meaning}", pair_columns.DERIVED[key].compute)
        for key, name, unit in (
            ("magnitude_ratio", "effective magnitudes, chosen : rejected", "1"),
            ("balance_token", "pulls on probabilities per token, chosen : rejected", "1"),
            ("balance_ceiling", "the same up to AdaDPO's ceiling", "1"),
        )
    ),
)  # fmt: skip
"""What is measured of every run; `measures` adds the cases on the basis that the run has."""


OF_COLUMN = {"cosine": "grad_cosine", **{f"grad_norm_{side}": f"grad_norm_{side}" for side in SIDE_LETTERS}}
"""Key of a measure that is a column's median → the column."""


def measures(pairs: pd.DataFrame, basis: str = "") -> tuple[Measure, ...]:
    """All measures of a completed table (``basis.completed``), the cases on one basis: by default the run's own."""
    shown = BASES[basis or basis_of(pairs)]
    return MEASURES + tuple(
        Measure(
            f"case_{number}",
            f"case {number}: {name}, {shown.name}",
            "share",
            f"share of rows in case {number}; {shown.formula}",
            _column(shown.column),
            _equal(number),
        )
        for number, name in CASES.items()
    )


HELD_OUT: tuple[tuple[str, str, str, str], ...] = (
    ("eval_logp_chosen", "held-out log-prob of chosen", "nats/sequence", "mean a"),
    ("eval_logp_rejected", "held-out log-prob of rejected", "nats/sequence", "mean b"),
    ("eval_margin", "held-out margin", "nats", "mean score_chosen − score_rejected"),
    ("eval_accuracy", "held-out accuracy", "share", "share with margin > 0"),
    (
        "eval_log_ratio_margin",
        "held-out log-ratio margin",
        "nats/sequence",
        "mean (a − r_w) − (b − r_l); no reference: change of a − b since the start of training",
    ),
    ("eval_log_ratio_accuracy", "held-out log-ratio accuracy", "share", "share with log-ratio margin > 0"),
    ("eval_kl_ref", "held-out KL to the reference", "nats/token", "mean of KL(π‖π_ref) over response positions"),
    (
        "eval_kl_ref_sampled",
        "held-out KL to the reference, sampled",
        "nats/token",
        "mean of r log r − (r − 1), r = π/π_ref of tokens that π_ref drew at response positions",
    ),
)
"""Key (its column in the table `steps`), name, unit and formula of what is evaluated on the held-out pairs."""

OWN = ("margin", "accuracy", "eval_margin", "eval_accuracy")
"""Keys of the measures by the objective's own score: runs of different objectives are not compared by them."""

COMMON = "log_ratio_"
"""What the key of a measure by log-ratios has over that of the same measure by the objective's own score."""


def overview(trace: Trace) -> list[Line]:
    """Every measure that was recorded, at the start and at the end of the run; measures by log-ratios only where the
    objective's own score is another."""
    lines = every_line(trace)
    known = {line.key: (line.first, line.last) for line in lines}
    return [
        line
        for line in lines
        if COMMON not in line.key
        or not np.array_equal(known[line.key], known.get(line.key.replace(COMMON, ""), ()), equal_nan=True)
    ]


def every_line(trace: Trace, basis: str = "") -> list[Line]:
    """Every measure that was recorded, at the start and at the end of the run; cases on ``basis``, else the run's."""
    return [*_recorded(trace, basis), *_over_run(trace), *_held_out(trace)]


def _over_run(trace: Trace) -> list[Line]:
    """What is of the whole run rather than of its ends: the synchrony of chosen and rejected, with its error."""
    found = run_synchrony(trace)
    if found is None or np.isnan(found.run):
        return []
    formula = f"correlation over steps of the means of Δa and Δb ({found.basis}), whole run"
    lines = [Line("synchrony", "synchrony of chosen and rejected", "1", formula, float("nan"), found.run)]
    error = "blocks of neighbouring steps left out one after another (jackknife)"
    return [*lines, Line("synchrony_error", "error of the synchrony", "1", error, float("nan"), found.error)]


def _held_out(trace: Trace) -> list[Line]:
    """The held-out pairs at their first and last evaluation; the one after the last step stands in run.json."""
    lines = []
    for key, name, unit, formula in HELD_OUT:
        values = finite(numbers(trace.steps.sort_values("step"), key))
        if len(values):
            end = getattr(trace.about.held_out, key, None)
            end = values[-1] if end is None else end
            lines.append(Line(key, name, unit, f"{formula}, first and last evaluation", float(values[0]), float(end)))
    return lines


def _recorded(trace: Trace, basis: str) -> list[Line]:
    """Every measure of the table `pairs` that was recorded."""
    pairs = completed(trace)
    parts = tenths(pairs)
    last = pairs if parts is None else pairs[parts.last]
    first = pairs.iloc[:0] if parts is None else pairs[parts.first]
    lines = []
    for measure in measures(pairs, basis):
        early, late = (measure.summary(measure.values(rows)) for rows in (first, last))
        if np.isfinite(early) or np.isfinite(late):
            column, known = OF_COLUMN.get(measure.key, ""), half_errors(trace)
            errors = (half_error(known, column, {column: early}), half_error(known, column, {column: late}))
            lines.append(Line(measure.key, measure.name, measure.unit, measure.formula, early, late, errors))
    return lines
