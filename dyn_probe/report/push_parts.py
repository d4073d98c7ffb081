"""The table `pushes` as the report reads it: the parts of a push by side, their names, and their balance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report.frames import Floats, finite, numbers, once

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

RESAMPLES = 200

PARTS: dict[str, str] = {
    "own_chosen": "this pair's chosen",
    "own_rejected": "this pair's rejected",
    "others": "other pairs of the batch",
    "past": "what past steps left in the momentum",
    "decay": "weight decay",
    "rounding": "rounding of the stored weights",
}
"""Column of `pushes` → what pushes; the parts add up to the column `total`."""


@once
def of_side(trace: Trace, side: str) -> pd.DataFrame:
    """The rows of `pushes` of one side of steps that were taken apart (in the last step's metric there is no total)."""
    return trace.pushes[(trace.pushes["side"] == side) & (trace.pushes["metric"] != "previous").fillna(True)]


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


def kept_apart(trace: Trace) -> bool:
    """Whether the pushes of all chosen and of all rejected were recorded."""
    return bool(len(finite(numbers(of_side(trace, "chosen"), "all_chosen"))))


@dataclass(frozen=True)
class Balance:
    """How far the pushes of the other side outweigh those of a side's own on its rows (negative: the other way), its
    standard error, and the pairs and rows that it was computed from."""

    value: float
    error: float
    pairs: int
    rows: int

    @property
    def together(self) -> bool:
        """Whether the pushes of both sides move the response the same way."""
        return self.value <= -1

    @property
    def excess(self) -> float:
        """By what share the stronger pushes outweigh the weaker; NaN where both move the response the same way."""
        if self.together:
            return float("nan")
        return self.value if self.value >= 0 else -self.value / (1 + self.value)

    @property
    def excess_error(self) -> float:
        """The standard error of `excess`."""
        return self.error if self.value >= 0 or self.together else self.error / (1 + self.value) ** 2


def balance(trace: Trace, own: bool = True, seed: int = 0, side: str = "chosen") -> Balance | None:
    """−Σ all_rejected / Σ all_chosen − 1 over the chosen rows, with a standard error by resampling pairs (200 times);
    on the rejected rows −Σ all_chosen / Σ all_rejected − 1, above 0 where chosen pushes outweigh.

    None without both columns, and where a side's pushes do not move it its own way, so that the ratio means nothing.

    Args:
        own: with the pushes of the row's own pair. Without them it is the balance of what moves a response in a step
            that does not train on its pair, as most steps of a run do not.
    """
    rows, sign = of_side(trace, side), 1.0 if side == "chosen" else -1.0
    sides = (side, *(other for other in ("chosen", "rejected") if other != side))
    less = {name: 0.0 if own else numbers(rows, f"own_{name}") for name in sides}
    table = pd.DataFrame({f"all_{name}": sign * (numbers(rows, f"all_{name}") - part) for name, part in less.items()})
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
    """−other/own − 1 of sums [n, 2] as [n]; NaN where the side's own sum is not above 0."""
    own, other = sums.T
    return np.divide(-other, own, out=np.full(len(sums), np.nan), where=own > 0) - 1
