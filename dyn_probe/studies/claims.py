"""A study's claims, judged: the numbers of each seed with their standard errors, and one of three verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dyn_probe.report.frames import Floats

HOLDS, FAILS, OPEN = "holds", "does not hold", "not distinguishable from"
ERRORS = 2.0
"""Standard errors by which a number must differ from its limit to be distinguished from it."""


@dataclass(frozen=True)
class PublishedClaim:
    """One claim of a paper, and what these runs show: ``by_seed`` are the numbers that must all agree with it."""

    claim: str
    expected: str
    measured: str
    holds: bool
    by_seed: str


@dataclass(frozen=True)
class Finding(PublishedClaim):
    """A claim with its verdict: holds, does not hold, or not distinguishable from its limit."""

    verdict: str


@dataclass(frozen=True)
class Estimate:
    """One seed's mean, its standard error over pairs (NaN of a single one), and the smallest and largest of them."""

    value: float
    error: float
    least: float
    most: float

    @staticmethod
    def of(values: Floats, groups: Sequence[object] | None = None) -> Estimate:
        """Of independent values; those of one group (a pair's tokens) count as one for the error."""
        means = values if groups is None else np.array([values[places].mean() for places in _places(groups)])
        error = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("nan")
        return Estimate(float(means.mean()), error, float(values.min()), float(values.max()))

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference, as if the two were independent."""
        error = float(np.hypot(self.error, other.error))
        return Estimate(self.value - other.value, error, self.least - other.most, self.most - other.least)


def _places(groups: Sequence[object]) -> list[slice]:
    """Runs of equal neighbours."""
    starts = [0, *(k for k, (a, b) in enumerate(pairwise(groups), 1) if a != b), len(groups)]
    return [slice(a, b) for a, b in pairwise(starts)]


def differences(left: Sequence[Estimate], right: Sequence[Estimate]) -> list[Estimate]:
    """Seed by seed."""
    return [one - other for one, other in zip(left, right, strict=True)]


def verdict(seeds: Sequence[Estimate], above: bool, limit: float = 0.0) -> str:
    """Holds if every seed is on the right side of ``limit`` by ERRORS standard errors; does not hold if any is on the
    wrong side by as much; otherwise not distinguishable."""
    away = [(one.value - limit) * (1 if above else -1) for one in seeds]
    if all(far >= ERRORS * one.error for far, one in zip(away, seeds, strict=True)) and min(away) > 0:
        return HOLDS
    if any(far < 0 and -far >= ERRORS * one.error for far, one in zip(away, seeds, strict=True)):
        return FAILS
    return f"{OPEN} {limit:g}"


def finding(
    claim: str,
    expected: str,
    name: str,
    seeds: Sequence[Estimate],
    above: bool,
    limit: float = 0.0,
    extremes: bool = False,
) -> Finding:
    """The claim that every seed's number is above (or below) the limit.

    Args:
        name: what the number is.
        extremes: also show the smallest (largest, where the claim is "below") single value of each seed.
    """
    values = np.array([one.value for one in seeds])
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    said = verdict(seeds, above, limit)
    shown = [_shown(one) + (_extreme(one, above) if extremes else "") for one in seeds]
    return Finding(claim, expected, f"{name} {values.mean():+.3f}{spread}", said == HOLDS, "; ".join(shown), said)


def _shown(one: Estimate) -> str:
    error = "?" if np.isnan(one.error) else f"{one.error:.3f}"
    return f"{one.value:+.3f} ± {error}"


def _extreme(one: Estimate, above: bool) -> str:
    return f" (least {one.least:+.3f})" if above else f" (most {one.most:+.3f})"
