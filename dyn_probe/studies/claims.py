"""A study's claims, judged: the numbers of each seed with their standard errors, and one rule for the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dyn_probe.report.frames import Floats

HOLDS, FAILS, OPEN, NOT_RUN = "holds", "does not hold", "cannot tell", "not run"
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
    """A claim with its verdict: one of HOLDS, FAILS, OPEN and NOT_RUN."""

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


def pooled(seeds: Sequence[Estimate]) -> Estimate:
    """The mean over seeds, with the larger of two standard errors: that over the pairs of all seeds, and that over the
    seeds. The second alone where an error over pairs is not known, the first alone for a single seed."""
    values, errors = (np.array([getattr(one, name) for one in seeds]) for name in ("value", "error"))
    within = float(np.sqrt((errors**2).sum()) / len(errors))
    between = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    known = [error for error in (within, between) if np.isfinite(error)]
    least, most = min(one.least for one in seeds), max(one.most for one in seeds)
    return Estimate(float(values.mean()), max(known, default=float("nan")), least, most)


def verdict(seeds: Sequence[Estimate], above: bool, limit: float = 0.0) -> str:
    """The one rule of all studies: a claim holds if the mean over seeds is on its side of ``limit`` by ERRORS standard
    errors, does not hold if it is on the other side by as much, and else it cannot be told."""
    if not seeds:
        return NOT_RUN
    mean = pooled(seeds)
    away = (mean.value - limit) * (1 if above else -1)
    if not np.isfinite(mean.error) or abs(away) < ERRORS * mean.error or away == 0:
        return OPEN
    return HOLDS if away > 0 else FAILS


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
    said = verdict(seeds, above, limit)
    if not seeds:
        return Finding(claim, expected, NOT_RUN, False, "", said)
    shown = [_shown(one) + (_extreme(one, above) if extremes else "") for one in seeds]
    return Finding(claim, expected, f"{name} {_shown(pooled(seeds))}", said == HOLDS, "; ".join(shown), said)


def _shown(one: Estimate) -> str:
    error = "?" if np.isnan(one.error) else f"{one.error:.3f}"
    return f"{one.value:+.3f} ± {error}"


def _extreme(one: Estimate, above: bool) -> str:
    return f" (least {one.least:+.3f})" if above else f" (most {one.most:+.3f})"


def claim_lines(judged: Sequence[Finding]) -> list[str]:
    """The claims as lines for a terminal: verdict, claim, what was expected, each seed with its standard error."""
    wide, widest = (
        max(len(text) for text in texts) for texts in zip(*((o.claim, o.verdict) for o in judged), strict=True)
    )
    return [f"{one.verdict:{widest}}  {one.claim:{wide}}  {one.expected}: {one.by_seed}" for one in judged]
