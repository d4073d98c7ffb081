"""Whether one method of a grid beats another: paired over settings and seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dyn_probe.train.grid import Outcome

BEATEN_BY = {
    "chosen": ("Δchosen", "nats/sequence"),
    "margin": ("Δmargin", "nats/sequence"),
    "log_ratio_accuracy": ("log-ratio acc.", "share"),
}
"""Numbers of an outcome by which methods are tested, higher is better: name and unit."""
PAIRING = (
    "Paired by setting and seed: the same options, the same held-out pairs, the same policy at the start. Settings of "
    "one seed share that start, so they are not independent samples: where settings outnumber seeds, p is too "
    "small. p is two-sided and not corrected for the number of comparisons."
)


@dataclass(frozen=True)
class Paired:
    """One method against another by one number, over the combinations of setting and seed that both have.

    Args:
        first, second: the methods; differences are second − first.
        pairs: combinations that both have.
        wins: share of them in which the second is higher; ``ties`` in which they are equal.
        difference, error: mean difference and its standard error (NaN with fewer than two).
        wilcoxon, t_test: two-sided p of Wilcoxon's signed-rank test and of the paired t-test; NaN where there are fewer
            than two differences, or none that is not 0.
    """

    first: str
    second: str
    measure: str
    pairs: int
    wins: float
    ties: float
    difference: float
    error: float
    wilcoxon: float
    t_test: float


def standard_error(values: Sequence[float]) -> float:
    """Standard deviation over √n (n − 1 degrees of freedom); NaN with fewer than two values."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def paired_tests(found: Sequence[Outcome]) -> list[Paired]:
    """Every method against the first, by every number of BEATEN_BY."""
    first, *others = dict.fromkeys(one.method for one in found)
    return [paired_test(found, first, other, measure) for other in others for measure in BEATEN_BY]


def paired_test(found: Sequence[Outcome], first: str, second: str, measure: str) -> Paired:
    """The second method against the first by one number."""
    from scipy import stats  # a second of imports that no other command needs

    sides = ({(o.setting, o.seed): getattr(o, measure) for o in found if o.method == name} for name in (first, second))
    left, right = sides
    known = [key for key in left if key in right and math.isfinite(left[key]) and math.isfinite(right[key])]
    gaps = np.array([right[key] - left[key] for key in known])
    wilcoxon = t_test = math.nan
    if len(gaps) > 1 and gaps.any():
        wilcoxon = float(stats.wilcoxon(gaps).pvalue)
        t_test = float(stats.ttest_rel([right[key] for key in known], [left[key] for key in known]).pvalue)
    return Paired(
        first, second, measure, len(gaps), float((gaps > 0).mean()) if len(gaps) else math.nan,
        float((gaps == 0).mean()) if len(gaps) else math.nan, float(gaps.mean()) if len(gaps) else math.nan,
        standard_error(list(gaps)), wilcoxon, t_test,
    )  # fmt: skip


def paired_lines(tests: Sequence[Paired]) -> list[str]:
    """A line for each test, and what the pairing is; nothing where no method has two combinations in common with the
    first."""
    lines = [paired_sentence(one) for one in tests if one.pairs > 1]
    return [*lines, PAIRING] if lines else []


def paired_sentence(one: Paired) -> str:
    """``gate beats dpo by Δchosen in 83% of 6 combinations: +1.20 ± 0.31 nats/sequence (Wilcoxon p 0.03, …)``."""
    name, unit = BEATEN_BY[one.measure]
    share = unit == "share"
    size = (
        f"{100 * one.difference:+.1f} ± {100 * one.error:.1f} pp"
        if share
        else f"{one.difference:+.2f} ± {one.error:.2f} {unit}"
    )
    ties = f" (equal in {one.ties:.0%})" if one.ties else ""
    tested = f"Wilcoxon p {_p(one.wilcoxon)}, t-test p {_p(one.t_test)}"
    won = f"{one.second} beats {one.first} by {name} in {one.wins:.0%}{ties} of {one.pairs} combinations"
    return f"{won}: {size} ({tested})."


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
