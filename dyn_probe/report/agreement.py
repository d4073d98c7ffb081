"""How well two series of changes agree: share of equal signs, correlations and their errors, synchrony of the sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report.frames import Floats, numbers, once, recorded

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


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


BLOCKS = 10
"""Blocks of neighbouring steps of which one after another is left out for the error."""
LEAST_STEPS, LEAST_ROWS = 8, 5
"""Fewer steps of a run, or rows of a pair, give no correlation."""
CHANGES = {"realised_delta": "realised", "update_delta": "along the optimizer's step, first order"}
"""Changes whose sides can be correlated, what was measured first → how they are spoken of."""


@dataclass(frozen=True)
class Synchrony:
    """Correlation of Δa with Δb over steps (Yuan et al. 2024, Figure 1): 1 both move as one, 0 independently.

    Args:
        basis: which changes, in words.
        run, error: over the steps' means, with the error by leaving out blocks of neighbouring steps (NaN of few).
        steps: how many there are.
        pair, pair_error: mean over pairs of the correlation over a pair's own rows, and its standard error.
        pairs: how many pairs have LEAST_ROWS rows.
    """

    basis: str
    run: float
    error: float
    steps: int
    pair: float
    pair_error: float
    pairs: int


def by_group(names: np.ndarray, x: Floats, y: Floats, least: int = LEAST_ROWS) -> Floats:
    """Linear correlation of x and y within each group of equal names [groups]; NaN with fewer than `least` rows or a
    constant column."""
    group, distinct = pd.factorize(names)
    order = np.argsort(group, kind="stable")
    group, counts = group[order], np.bincount(group, minlength=len(distinct))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    usable, centred = counts >= least, []
    for values in (x[order], y[order]):
        usable &= np.maximum.reduceat(values, starts) > np.minimum.reduceat(values, starts)
        centred.append(values - (np.bincount(group, values) / counts)[group])
    xx, yy, xy = (np.bincount(group, centred[i] * centred[j]) for i, j in ((0, 0), (1, 1), (0, 1)))
    found = np.divide(xy, np.sqrt(xx * yy), out=np.full(len(counts), np.nan), where=usable)
    return np.clip(found, -1, 1)


@once
def run_synchrony(trace: Trace) -> Synchrony | None:
    """``synchrony`` of a run."""
    return synchrony(trace.pairs)


def synchrony(pairs: pd.DataFrame) -> Synchrony | None:
    """Of the run's pair rows; None where no change of both sides was recorded, or over fewer than LEAST_STEPS steps."""
    name = next((n for n in CHANGES if all(recorded(pairs, f"{n}_{side}") for side in ("chosen", "rejected"))), None)
    if name is None:
        return None
    up, down = (numbers(pairs, f"{name}_{side}") for side in ("chosen", "rejected"))
    ids = pairs["pair_id"].to_numpy()
    frame = pd.DataFrame({"step": numbers(pairs, "step"), "pair": ids, "up": up, "down": down}).dropna()
    means = frame.groupby("step")[["up", "down"]].mean().to_numpy(dtype=np.float64)
    if len(means) < LEAST_STEPS:
        return None
    blocks = np.array_split(np.arange(len(means)), min(BLOCKS, len(means) // 2))
    without = np.array([pearson(*np.delete(means, block, axis=0).T) for block in blocks])
    spread = float(np.sqrt((len(blocks) - 1) * np.mean((without - without.mean()) ** 2)))
    own = by_group(frame["pair"].to_numpy(), frame["up"].to_numpy(), frame["down"].to_numpy())
    kept = own[np.isfinite(own)]
    error = float(kept.std(ddof=1) / np.sqrt(len(kept))) if len(kept) > 1 else float("nan")
    mean = float(kept.mean()) if len(kept) else float("nan")
    return Synchrony(CHANGES[name], pearson(*means.T), spread, len(means), mean, error, len(kept))
