"""Curves over steps: median line and bands per curve, each labelled at its right end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from dyn_probe.report.frames import Bins, Floats, bands
from dyn_probe.report.style import LABEL, short


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


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]], gap: float = 0.075) -> None:
    """Write each curve's label beside its last value, moved apart where they would touch."""
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
    """Heights at least `gap` apart, in the same order and with the same mean as the given ones."""
    placed = list(heights)
    order = sorted(range(len(placed)), key=lambda i: placed[i])
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    shift = np.mean(np.array(heights) - np.array(placed)) if placed else 0.0
    return [height + float(shift) for height in placed]
