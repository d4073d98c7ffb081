"""How figures look: one palette, one panel style, bands with direct labels. No global state is touched."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from dyn_probe.report.frames import Bins, Floats, bands

CHOSEN = "#0072B2"
REJECTED = "#D55E00"
SIDE_COLOURS = {"chosen": CHOSEN, "rejected": REJECTED}
CASE_COLOURS = {1: "#2A9D78", 2: "#B5588F", 3: "#E0A526", 4: "#5B6470"}
RUN_COLOURS = ("#4B3F8F", "#1B9E8A", "#C2476D", "#B8860B", "#4E8FC7", "#6B6B6B")
NEUTRAL = "#3C4A5B"
INK, MUTED, GRID = "#1F2933", "#6B7785", "#E6E9ED"
DIVERGING = "RdBu_r"

LABEL, TICK, TITLE = 8.5, 8, 9.5


def new_figure(
    columns: int = 1, height: float = 3.1, width: float = 9.6, ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with one row of styled panels: (Figure, [Axes])."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots(1, columns, squeeze=False, width_ratios=ratios)[0]
    for ax in axes:
        tidy(ax)
    return figure, list(axes)


def tidy(ax: Axes) -> None:
    """Two light spines, horizontal grid, small grey ticks."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#B8C0CA")
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=MUTED, labelsize=TICK, length=3, width=0.8, color="#B8C0CA")


def name_panel(ax: Axes, title: str, y: str = "", x: str = "optimizer step") -> None:
    """Panel title (left), axis labels with units, whole-numbered steps."""
    ax.set_title(title, loc="left", fontsize=TITLE, color=INK, fontweight="bold", pad=8)
    ax.set_ylabel(y, fontsize=LABEL, color=MUTED)
    ax.set_xlabel(x, fontsize=LABEL, color=MUTED)
    if x == "optimizer step":
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def say(ax: Axes, text: str) -> None:
    """Write why the panel is empty, in its middle."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.grid(visible=False)
    ax.text(0.5, 0.5, _wrapped(text), transform=ax.transAxes, ha="center", va="center", fontsize=10, color=MUTED)


def empty_figure(title: str, text: str) -> Figure:
    """A figure that only says why there is nothing to show."""
    figure, (ax,) = new_figure(1, height=1.7)
    name_panel(ax, title, x="")
    say(ax, text)
    return figure


def _wrapped(text: str, width: int = 60) -> str:
    return "\n".join(textwrap.wrap(text, width))


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
            text,
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


def rule(ax: Axes, y: float, text: str = "") -> None:
    """A thin reference line with a word on it."""
    ax.axhline(y, color=NEUTRAL, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1.5)
    ax.annotate(
        text,
        (0.015, y),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=7.5,
        color=MUTED,
        zorder=5,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )
