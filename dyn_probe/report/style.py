"""How figures look: one palette, one panel style, bands with direct labels. No global state is touched."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

CHOSEN = "#0072B2"
REJECTED = "#D55E00"
SIDE_COLOURS = {"chosen": CHOSEN, "rejected": REJECTED}
CASE_COLOURS = {1: "#2A9D78", 2: "#B5588F", 3: "#E0A526", 4: "#5B6470"}
PUSH_COLOURS = {
    "own_chosen": "#8FC1E3",
    "own_rejected": "#F2B48A",
    "others": "#B9C4CF",
    "past": "#C9B6DE",
    "decay": "#A8D5C2",
    "rounding": "#E3D08A",
}
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
    ax.set_title(title, loc="left", y=1.0, fontsize=TITLE, color=INK, fontweight="bold", pad=8)  # no search for a place
    ax.set_ylabel(y, fontsize=LABEL, color=MUTED)
    ax.set_xlabel(x, fontsize=LABEL, color=MUTED)
    if x == "optimizer step":
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def say(ax: Axes, text: str, width: int = 60) -> None:
    """Write in the middle of the panel why it is empty, `width` characters a line."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.grid(visible=False)
    ax.text(0.5, 0.5, _wrapped(text, width), transform=ax.transAxes, ha="center", va="center", fontsize=10, color=MUTED)


def empty_figure(title: str, text: str) -> Figure:
    """A figure that only says why there is nothing to show."""
    figure, (ax,) = new_figure(1, height=1.7)
    name_panel(ax, title, x="")
    say(ax, text)
    return figure


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def short(text: str, most: int = 28) -> str:
    """A name from the data, cut to what a figure has room for."""
    return text if len(text) <= most else text[: most - 1] + "…"


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
