"""Predicted against realised change of the log-probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_probe.report.agreement import Agreement, agreement
from dyn_probe.report.availability import why_absent
from dyn_probe.report.curves import widen
from dyn_probe.report.frames import Floats, finite, numbers
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.style import SIDE_COLOURS, name_panel, new_figure, say

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

MOST_POINTS = 3000


def predicted(trace: Trace) -> Figure:
    """Shows: for each pair and step, the first-order prediction (horizontal) against the change measured
    across the update (vertical). Left: predicted from the pair alone; middle: from the whole batch. Both
    assume one plain gradient step at the recorded learning rate, without the optimizer's scaling and momentum and
    without clipping. Right: along the optimizer's own update, which includes all of these.

    How to read: points in the shaded quadrants have the predicted sign. Compare signs and order, not sizes: adaptive
    optimizers stretch the vertical axis. If the batch panel agrees and the pair panel does not, other pairs
    of the batch move this one. Points beyond the 99th percentile of sizes are drawn on the border; where the tails
    are long the axes are logarithmic beyond the median size.

    Needs: realised changes; for the middle panel the batch's prediction (--gram-every), for the right one --update.
    """
    figure, axes = new_figure(3, height=3.9, width=12.6)
    kinds = (("predicted", "Each pair alone"), ("batch", "Whole batch"), ("update", "The optimizer's update"))
    for ax, (kind, title) in zip(axes, kinds, strict=True):
        name_panel(ax, title, "realised change (nats per sequence)", "predicted change (nats per sequence)")
        needs = [f"pairs.{name}_delta_{side}" for name in (kind, "realised") for side in SIDES]
        lack = why_absent(trace, *needs)
        if lack:
            say(ax, lack)
        else:
            _scatter(ax, trace, kind)
    return figure


def _scatter(ax: Axes, trace: Trace, kind: str) -> None:
    points = {
        side: (numbers(trace.pairs, f"{kind}_delta_{side}"), numbers(trace.pairs, f"realised_delta_{side}"))
        for side in SIDES
    }
    xs, ys = (np.concatenate(values) for values in zip(*points.values(), strict=True))
    wide, high = _limit(xs), _limit(ys)
    ax.set(xlim=(-1.05 * wide, 1.05 * wide), ylim=(-1.05 * high, 1.05 * high))
    for corner in (-1, 1):
        ax.fill_between([0, corner * 1.05 * wide], 0, corner * 1.05 * high, color="#EEF2F6", zorder=0)
    ax.axhline(0, color="#B8C0CA", linewidth=0.8)
    ax.axvline(0, color="#B8C0CA", linewidth=0.8)
    along = np.linspace(-1, 1, 201) * max(wide, high) * 1.05
    ax.plot(along, along, color="#9AA5B1", linewidth=0.9, linestyle=(0, (2, 2)), scalex=False, scaley=False)
    widen(ax, "x", xs, wide)
    widen(ax, "y", ys, high)
    for row, (side, (x, y)) in enumerate(points.items()):
        keep = _sample(np.isfinite(x) & np.isfinite(y))
        inside = np.clip(x[keep], -wide, wide), np.clip(y[keep], -high, high)
        ax.scatter(
            *inside, s=9 if len(keep) > 200 else 22, alpha=0.35, linewidths=0, color=SIDE_COLOURS[side], rasterized=True
        )
        _write(ax, row, side, agreement(x, y, ranks=False))


def _limit(values: Floats) -> float:
    kept = finite(values)
    return float(np.quantile(np.abs(kept), 0.99)) * 1.05 or 1.0


def _sample(mask: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(mask)
    return rows[:: max(1, len(rows) // MOST_POINTS)]


def _write(ax: Axes, row: int, side: str, found: Agreement) -> None:
    correlation = "" if np.isnan(found.pearson) else f"r = {found.pearson:.2f}, "
    text = f"{side}: same sign {found.same_sign:.0%}, {correlation}n = {found.n:,}"
    ax.annotate(
        text,
        (0.02, 0.97 - 0.065 * row),
        xycoords="axes fraction",
        va="top",
        fontsize=8.2,
        color=SIDE_COLOURS[side],
        fontweight="bold",
        bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5},
    )
