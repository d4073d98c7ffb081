"""The squeezing study's published table, and its figures: published against measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dyn_probe.report.style import GRID, MUTED, RUN_COLOURS, name_panel, new_figure
from dyn_probe.studies.published import COLUMNS, PUBLISHED

PRINTED = tuple(name for name in COLUMNS if name != "delta_argmax")
"""Columns of the published table."""


def published() -> pd.DataFrame:
    """The published table, one row per method."""
    return pd.DataFrame(
        [{"method": name, **{column: getattr(row, column) for column in PRINTED}} for name, row in PUBLISHED.items()]
    ).set_index("method")


def strips(frame: pd.DataFrame) -> Figure:
    """Shows: per figure, the published change (ring) and the measured one of every seed (dots) for each method.

    How to read: sizes differ with model and number of steps; compare signs, and the order of the methods.
    """
    figure, axes = new_figure(len(COLUMNS), height=3.9, width=11)
    methods = [name for name in PUBLISHED if name in set(frame["method"])]
    places = np.arange(len(methods))[::-1]
    for ax, (column, title) in zip(axes, COLUMNS.items(), strict=True):
        name_panel(ax, title, x="nats per sequence")
        for place, method in zip(places, methods, strict=True):
            dots = frame.loc[frame["method"] == method, column].to_numpy(dtype=float)
            first = ax is axes[0] and method == methods[0]
            ax.scatter(
                dots, np.full(len(dots), place), s=22, color=RUN_COLOURS[0], alpha=0.8, linewidths=0, zorder=3,
                label="measured" if first else None,
            )  # fmt: skip
            if column in PRINTED:
                ax.scatter(
                    getattr(PUBLISHED[method], column), place, s=34, facecolors="none", edgecolors=RUN_COLOURS[2],
                    label="published" if first else None,
                )  # fmt: skip
        ax.axvline(0, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        ax.set_yticks(places, methods if ax is axes[0] else [""] * len(methods))
        ax.grid(axis="x", color=GRID)
    axes[0].legend(fontsize=7.5, frameon=False, loc="lower left", labelcolor=MUTED)
    return figure


def ranks(frame: pd.DataFrame) -> Figure:
    """Shows: rank of each method by Δ chosen and Δ others, published against measured (mean over seeds).

    How to read: on the diagonal the order is the published one.
    """
    figure, axes = new_figure(2, height=3.9)
    means = frame.groupby("method")[list(PRINTED)].mean()
    wanted = published().loc[[name for name in PUBLISHED if name in means.index]]
    for ax, column in zip(axes, ("delta_chosen", "delta_others"), strict=True):
        name_panel(ax, f"Rank by {COLUMNS[column]}", y="measured (1 = highest)", x="published (1 = highest)")
        theirs, ours = (t.loc[wanted.index, column].rank(ascending=False) for t in (wanted, means))
        ax.plot([1, len(wanted)], [1, len(wanted)], color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        ax.scatter(theirs, ours, s=26, color=RUN_COLOURS[0], zorder=3)
        for method in wanted.index:
            ax.annotate(method, (theirs[method], ours[method]), (4, 3), textcoords="offset points", fontsize=7)
        ax.margins(0.14)
    return figure


FIGURES: dict[str, tuple[Callable[[pd.DataFrame], Figure], str]] = {
    "deltas": (strips, "Published and measured changes"),
    "ranks": (ranks, "The order of the methods"),
}
"""Name → drawing, title."""
