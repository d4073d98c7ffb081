"""How well one series of changes predicts another: share of equal signs, linear and rank correlation, scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dyn_probe.report.frames import Floats


@dataclass(frozen=True)
class Agreement:
    """Agreement of prediction x and measurement y over the n rows that have both."""

    n: int
    same_sign: float
    pearson: float
    spearman: float
    scale: float  # median |y| / median |x|


def agreement(x: Floats, y: Floats, ranks: bool = True) -> Agreement:
    """Compare two columns [rows]; a prediction of 0 agrees with 0 alone. Ranks cost a sort: NaN without them."""
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if not len(x):
        return Agreement(0, *[float("nan")] * 4)
    middle = float(np.median(np.abs(x)))
    scale = float(np.median(np.abs(y))) / middle if middle else float("nan")
    rho = spearman(x, y) if ranks else float("nan")
    return Agreement(len(x), float((np.sign(x) == np.sign(y)).mean()), pearson(x, y), rho, scale)


def pearson(x: Floats, y: Floats) -> float:
    """Linear correlation, NaN with fewer than three rows or a constant column."""
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation (ties get their mean rank), NaN with fewer than three rows or a constant column."""
    both = np.isfinite(x) & np.isfinite(y)
    first, second = (_ranks(values[both]) for values in (x, y))
    return pearson(first, second)


def _ranks(values: Floats) -> Floats:
    return np.asarray(pd.Series(values).rank(), dtype=np.float64)
