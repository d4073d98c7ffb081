"""The run in a dozen numbers: what it was at the start and what it is at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report import derived
from dyn_probe.report.frames import Floats, finite, median, numbers, share, tenths
from dyn_probe.trace.schema import CASES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


@dataclass(frozen=True)
class Measure:
    """One number over some rows of the table `pairs`: its name, unit, formula and how it is summarised."""

    name: str
    unit: str
    formula: str
    values: Callable[[pd.DataFrame], Floats]
    summary: Callable[[Floats], float] = median


@dataclass(frozen=True)
class Line:
    """A measure of a run: over the first and the last tenth of its steps (`first` NaN with a single step)."""

    name: str
    unit: str
    formula: str
    first: float
    last: float


def _column(name: str) -> Callable[[pd.DataFrame], Floats]:
    return lambda pairs: numbers(pairs, name)


def _per_token(side: str) -> Callable[[pd.DataFrame], Floats]:
    return lambda pairs: derived.per_token(pairs, side)


def _against(side: str) -> Callable[[pd.DataFrame], Floats]:
    return lambda pairs: derived.since_reference(pairs, side)


def _positive(values: Floats) -> float:
    return share(finite(values) > 0)


def _equal(number: int) -> Callable[[Floats], float]:
    return lambda values: share(finite(values) == number)


SIDE_LETTERS = {"chosen": ("a", "r_w", "n_w", "g_w", "d_w"), "rejected": ("b", "r_l", "n_l", "g_l", "d_l")}

MEASURES: tuple[Measure, ...] = (
    *(
        Measure(f"log-prob of {side}", "nats/token", f"median {logp}/{length}", _per_token(side))
        for side, (logp, _, length, _, _) in SIDE_LETTERS.items()
    ),
    *(
        Measure(f"{side} against reference", "nats/token", f"median ({logp} − {ref})/{length}", _against(side))
        for side, (logp, ref, length, _, _) in SIDE_LETTERS.items()
    ),
    Measure("margin", "nats/sequence", "median (a − r_w) − (b − r_l); no reference: a − b", derived.margin),
    Measure("accuracy", "share", "share of rows with margin > 0", derived.margin, _positive),
    Measure("loss", "nats", "median ℓ", _column("loss")),
    *(
        Measure(f"gradient norm of {side}", "nats/parameter unit", f"median ‖{grad}‖", _column(f"grad_norm_{side}"))
        for side, (_, _, _, grad, _) in SIDE_LETTERS.items()
    ),
    Measure("cosine", "1", "median ⟨g_w,g_l⟩/(‖g_w‖‖g_l‖)", _column("grad_cosine")),
    *(
        Measure(f"pull on {side}", "1", f"median {pull}", _column(f"pull_{side}"))
        for side, (_, _, _, _, pull) in SIDE_LETTERS.items()
    ),
    *(
        Measure(
            f"case {number}: {name}", "share", f"share of rows in case {number}", _column("case_plain"), _equal(number)
        )
        for number, name in CASES.items()
    ),
)  # fmt: skip


def overview(trace: Trace) -> list[Line]:
    """Every measure that was recorded, at the start and at the end of the run."""
    parts = tenths(trace.pairs)
    last = trace.pairs if parts is None else trace.pairs[parts.last]
    first = trace.pairs.iloc[:0] if parts is None else trace.pairs[parts.first]
    lines = []
    for measure in MEASURES:
        early, late = (measure.summary(measure.values(rows)) for rows in (first, last))
        if np.isfinite(early) or np.isfinite(late):
            lines.append(Line(measure.name, measure.unit, measure.formula, early, late))
    return lines
