"""Curves over steps: median line and bands per curve, each labelled at its right end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from dyn_probe.report.frames import Bins, Floats, bands, median
from dyn_probe.report.style import LABEL, short

HEAVY = 20.0
"""Tails over HEAVY times the median size get a scale that is logarithmic beyond the median."""


@dataclass(frozen=True)
class Curve:
    """One quantity over the rows of a table, with its label and colour."""

    label: str
    values: Floats
    colour: str
    dashed: bool = False


def draw_bands(
    ax: Axes,
    bins: Bins,
    curves: Sequence[Curve],
    wide: bool = False,
    within: tuple[float, float] | None = None,
) -> None:
    """Median line and IQR band per curve (with `wide`, also the 5–95 % band), labelled at the right end.

    `within` caps the vertical axis, for ratios whose tails would flatten everything else.
    """
    ends = []
    if wide:
        edges = np.concatenate([bands(bins, curve.values)[:, [0, 4]].ravel() for curve in curves])
        values = np.concatenate([curve.values for curve in curves])
        widen(ax, "y", values, float(np.nanmax(np.abs(edges), initial=0.0)))
    for curve in curves:
        low5, low, middle, high, high95 = bands(bins, curve.values).T
        if wide:
            ax.fill_between(bins.centre, low5, high95, color=curve.colour, alpha=0.10, linewidth=0)
        ax.fill_between(bins.centre, low, high, color=curve.colour, alpha=0.20, linewidth=0)
        ends.append(draw_line(ax, bins.centre, middle, curve))
        if len(bins) == 1:
            ax.vlines(bins.centre, low, high, color=curve.colour, alpha=0.3, linewidth=8)
    fit_steps(ax, bins)
    if within:
        ax.autoscale_view()
        ax.set_ylim(max(within[0], ax.get_ylim()[0]), min(within[1], ax.get_ylim()[1]))
    label_ends(ax, [end for end in ends if end is not None])


def widen(ax: Axes, name: str, values: Floats, reach: float) -> None:
    """Scale an axis ("x" or "y") linearly up to the median size and logarithmically beyond, if `reach` is far."""
    typical = median(np.abs(values))
    if not 0 < HEAVY * typical < reach:
        return
    if name == "x":
        ax.set_xscale("symlog", linthresh=typical)
    else:
        ax.set_yscale("symlog", linthresh=typical)
    axis = ax.xaxis if name == "x" else ax.yaxis
    axis.set_major_locator(FixedLocator(decades(typical, reach)))
    axis.set_minor_locator(NullLocator())


def decades(typical: float, reach: float, most: int = 3) -> list[float]:
    """0 and at most `most` powers of ten on either side, none so close to 0 that labels would overlap."""
    powers = range(int(np.ceil(np.log10(2 * typical))), int(np.floor(np.log10(reach))) + 1)
    kept = [10.0**power for power in list(powers)[:: -max(1, -(-len(powers) // most))]]
    return [*(-value for value in kept), 0.0, *reversed(kept)]


def draw_line(ax: Axes, x: Floats, y: Floats, curve: Curve) -> tuple[float, str, str] | None:
    """One line (a dot for a single value); (height, label, colour) of its end, None without a value."""
    kept = np.isfinite(y)
    if not kept.any():
        return None
    marker = "o" if kept.sum() == 1 else None
    style = (0, (4, 2)) if curve.dashed else "solid"
    ax.plot(x[kept], y[kept], color=curve.colour, linewidth=1.7, linestyle=style, marker=marker, markersize=5)
    return float(y[kept][-1]), curve.label, curve.colour


def fit_steps(ax: Axes, bins: Bins) -> None:
    """Let the x axis span the recorded steps exactly (half a step around a single one)."""
    if len(bins):
        low, high = float(bins.low[0]), float(bins.high[-1])
        pad = 0.5 if low == high else 0.0
        ax.set_xlim(low - pad, high + pad)
        if low == high:
            ax.set_xticks([low], [f"{low:.0f}"])


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]], gap: float = 0.075) -> None:
    """Write each curve's label beside its last value, moved so that labels do not overlap."""
    heights = [_height(ax, value) for value, _, _ in ends]
    for (_, text, colour), height in zip(ends, spread(heights, gap), strict=True):
        ax.annotate(
            short(text),
            (1, height),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=LABEL,
            color=colour,
            fontweight="bold",
            annotation_clip=False,
            parse_math=False,
        )


def _height(ax: Axes, value: float) -> float:
    ax.autoscale_view()
    height = (ax.transData + ax.transAxes.inverted()).transform((ax.get_xlim()[0], value))[1]
    return float(np.clip(height, 0, 1))


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights with at least `gap` between them, in the same order and with the same mean as the given ones."""
    placed = list(heights)
    order = sorted(range(len(placed)), key=lambda i: placed[i])
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    shift = np.mean(np.array(heights) - np.array(placed)) if placed else 0.0
    return [height + float(shift) for height in placed]
