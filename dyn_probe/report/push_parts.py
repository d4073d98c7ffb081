"""The table `pushes` as the report reads it: the parts of a push by side, their names, and their balance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report.frames import Floats, finite, numbers

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

RESAMPLES = 200

PARTS: dict[str, str] = {
    "own_chosen": "this pair's chosen",
    "own_rejected": "this pair's rejected",
    "others": "other pairs",
    "past": "what past steps left in the momentum",
    "decay": "weight decay",
    "rounding": "rounding of the stored weights",
}
"""Column of `pushes` → what pushes; the parts add up to the column `total`."""


def of_side(trace: Trace, side: str) -> pd.DataFrame:
    """The rows of `pushes` of one side."""
    return trace.pushes[trace.pushes["side"] == side]


def means(rows: pd.DataFrame) -> dict[str, float]:
    """Part → its mean over the rows, nats a step; only what was recorded. Parts are averaged over rows that have all of
    them, so that they add up."""
    columns = {name: numbers(rows, name) for name in PARTS}
    whole = np.isfinite(list(columns.values())).all(0)
    return {name: float(values[whole].mean()) for name, values in columns.items()} if whole.any() else {}


def ordered(parts: dict[str, float]) -> list[tuple[str, float]]:
    """Parts from the largest to the smallest push, whatever its sign."""
    return sorted(parts.items(), key=lambda part: -abs(part[1]))


@dataclass(frozen=True)
class Piece:
    """One part of a stacked bar on an axis from −1 to 1: where it starts, how wide it is, its push in nats a step."""

    part: str
    push: float
    start: float
    width: float


def bar(parts: dict[str, float], reach: float) -> list[Piece]:
    """The parts stacked from the middle, pushes down to the left and pushes up to the right, the largest innermost.

    Args:
        reach: the push that fills half of the axis.
    """
    ends, pieces = {False: 0.0, True: 0.0}, []
    for name, push in ordered(parts):
        width = abs(push) / reach if reach > 0 else 0.0
        up = push > 0
        pieces.append(Piece(name, push, ends[up] if up else -ends[up] - width, width))
        ends[up] += width
    return pieces


def reach(parts: dict[str, float]) -> float:
    """The larger of all pushes up and all pushes down together."""
    return max(sum(push for push in parts.values() if push > 0), -sum(push for push in parts.values() if push < 0))


@dataclass(frozen=True)
class Balance:
    """How far rejected pushes outweigh chosen pushes on a side's rows (negative: the other way), its standard error,
    and the pairs and rows that it was computed from."""

    value: float
    error: float
    pairs: int
    rows: int


def balance(trace: Trace, own: bool = True, seed: int = 0) -> Balance | None:
    """−Σ all_rejected / Σ all_chosen − 1 over the chosen rows, with a standard error by resampling pairs (200 times).

    None without both columns, and where the chosen pushes do not raise chosen, so that the ratio means nothing.

    Args:
        own: with the pushes of the row's own pair. Without them it is the balance of what moves a response in a step
            that does not train on its pair, as most steps of a run do not.
    """
    rows = of_side(trace, "chosen")
    less = {side: 0.0 if own else numbers(rows, f"own_{side}") for side in ("chosen", "rejected")}
    table = pd.DataFrame({f"all_{side}": numbers(rows, f"all_{side}") - part for side, part in less.items()})
    table["pair_id"] = rows["pair_id"].to_numpy()
    table = table.dropna()
    sums = table.groupby("pair_id").sum().to_numpy(dtype=np.float64)  # [pairs, 2]
    if not len(sums) or not sums[:, 0].sum() > 0:
        return None
    picks = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    drawn = ratio(sums[picks].sum(1))
    error = float(np.std(finite(drawn), ddof=1)) if len(sums) > 1 else float("nan")
    return Balance(float(ratio(sums.sum(0)[None])[0]), error, len(sums), len(table))


def ratio(sums: Floats) -> Floats:
    """−rejected/chosen − 1 of sums [n, 2] as [n]; NaN where chosen's sum is not above 0."""
    chosen, rejected = sums.T
    return np.divide(-rejected, chosen, out=np.full(len(sums), np.nan), where=chosen > 0) - 1
