"""Cosine and realised change of each pair against how alike its two responses are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_probe.report.availability import why_absent
from dyn_probe.report.frames import Floats, finite, numbers
from dyn_probe.report.style import NEUTRAL, SIDE_COLOURS, empty_figure, name_panel, new_figure, say
from dyn_probe.report.verdicts.alike import by_pair

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

TITLE = "How alike the responses are"
MOST_POINTS, MOST_BINS = 3000, 8
AXIS = "edit distance (0 the same, 1 nothing shared)"


def likeness(trace: Trace) -> Figure:
    """Shows: one dot per pair (means over its recorded rows), across the edit distance of its two responses: the
    Levenshtein distance of their tokens, divided by the longer length. Left: the cosine of the chosen and rejected
    gradient; right: the realised change of chosen and of rejected in one update. Lines: medians of pairs that are
    about equally alike.

    How to read: near-duplicates, on the left of each panel, share most of their tokens and so most of their gradients.
    Where the cosine is highest there and both changes have the same sign, likeness is what entangles the pairs:
    responses that differ more, or a mask on the shared tokens, would help.

    Needs: pairs recorded with their tokens; for the left panel gradients, for the right one realised changes.
    """
    lack = why_absent(trace, "pairs.edit_distance")
    if lack:
        return empty_figure(TITLE, lack)
    rows = by_pair(trace.pairs)
    distance = numbers(rows, "edit_distance")
    figure, (left, right) = new_figure(2, height=3.4)
    name_panel(left, "Cosine", r"cosine of $g_w$ and $g_l$", AXIS)
    name_panel(right, "Realised change", "nats per sequence", AXIS)
    lacks = why_absent(trace, "pairs.grad_cosine"), why_absent(trace, "pairs.realised_delta_chosen")
    for ax, text in zip((left, right), lacks, strict=True):
        if text:
            say(ax, text)
    if not lacks[0]:
        draw(left, distance, numbers(rows, "grad_cosine"), NEUTRAL)
    for side, colour in () if lacks[1] else SIDE_COLOURS.items():
        draw(right, distance, numbers(rows, f"realised_delta_{side}"), colour)
    return figure


def draw(ax: Axes, x: Floats, y: Floats, colour: str) -> None:
    """Dots and the medians of bins of equally many pairs."""
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    thin = slice(None, None, max(1, len(x) // MOST_POINTS))
    ax.scatter(x[thin], y[thin], s=12, alpha=0.35, linewidths=0, color=colour, rasterized=True)
    places, middles = medians(x, y)
    ax.plot(places, middles, color=colour, linewidth=1.7, marker="o", markersize=4)
    ax.axhline(0, color="#B8C0CA", linewidth=0.8)


def medians(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Median x and y of at most MOST_BINS groups of pairs, in order of x; equal x are never in two groups."""
    edges = np.unique(np.quantile(finite(x), np.linspace(0, 1, MOST_BINS + 1)[1:-1])) if len(x) else np.empty(0)
    group = np.searchsorted(edges, x, side="left")
    found = [(np.median(x[group == k]), np.median(y[group == k])) for k in np.unique(group)]
    return np.array([a for a, _ in found]), np.array([b for _, b in found])
