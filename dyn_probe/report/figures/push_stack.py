"""What pushed chosen and rejected over the steps: stacked parts, the total and what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dyn_probe.report.availability import why_absent
from dyn_probe.report.curves import Curve, draw_line, fit_steps, label_ends
from dyn_probe.report.frames import Bins, Floats, finite, numbers, step_bins
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.push_parts import PARTS, of_side
from dyn_probe.report.style import (
    INK,
    LABEL,
    MUTED,
    PUSH_COLOURS,
    SIDE_COLOURS,
    empty_figure,
    name_panel,
    new_figure,
    rule,
    say,
)

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

TINY = 1e-3
"""A part below this share of the largest has no area and no mark."""


def pushes(trace: Trace) -> Figure:
    """Shows: what moved chosen (left) and rejected (right), nats a step: the mean of each push over the pairs of a bin
    of steps, stacked upward where it raises the response and downward where it lowers it. Black: their total, to first
    order; in the side's colour, dashed: the measured change of the same steps.

    How to read: the total is the sum of the areas above 0 less those below. A response falls although its own pair
    raises it where the momentum or other pairs outweigh the pair. Total and measured change apart mean that first
    order does not hold. Areas are shares of the steps as they were applied, and not what would change without them.

    Needs: the optimizer's steps taken apart; for the dashed line, realised changes.
    """
    lack = why_absent(trace, "pushes.total")
    if lack:
        return empty_figure("Pushes", lack)
    figure, axes = new_figure(2, height=3.9)
    drawn: set[str] = set()
    for ax, side in zip(axes, SIDES, strict=True):
        name_panel(ax, side.capitalize(), "nats per sequence and step")
        drawn |= draw_side(ax, trace, side)
    marks = [Patch(color=PUSH_COLOURS[name], label=text) for name, text in PARTS.items() if name in drawn]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=LABEL, labelcolor=MUTED)
    return figure


def draw_side(ax: Axes, trace: Trace, side: str, labels: bool = True) -> set[str]:
    """Draw one side; the names of the parts that have an area. Without `labels` the lines have no names."""
    rows = of_side(trace, side)
    if not len(finite(numbers(rows, "total"))):
        say(ax, "not recorded")
        return set()
    bins, realised = step_bins(rows), measured(trace, rows, side)
    parts = {name: bins.means(numbers(rows, name)) for name in PARTS}
    largest = max((float(np.nanmax(np.abs(part), initial=0.0)) for part in parts.values()), default=0.0)
    kept = {name: part for name, part in parts.items() if np.nanmax(np.abs(part), initial=0.0) > TINY * largest}
    rule(ax, 0)
    _stack(ax, bins, kept)
    ends = [
        draw_line(ax, bins.centre, bins.means(numbers(rows, "total")), Curve("total", np.empty(0), INK)),
        draw_line(ax, bins.centre, bins.means(realised), Curve("measured", np.empty(0), SIDE_COLOURS[side], True)),
    ]
    fit_steps(ax, bins)
    if labels:
        label_ends(ax, [end for end in ends if end is not None])
    return set(kept)


def measured(trace: Trace, rows: pd.DataFrame, side: str) -> Floats:
    """The realised change of each row of `pushes` [rows], NaN where it was not measured."""
    keys = ["step", "rank", "pair_id"]
    known = trace.pairs[[*keys, f"realised_delta_{side}"]].drop_duplicates(keys)
    return numbers(rows[keys].merge(known, on=keys, how="left"), f"realised_delta_{side}")


def _stack(ax: Axes, bins: Bins, parts: dict[str, Floats]) -> None:
    """Areas (bars where there is one bin) above 0 for what raises and below for what lowers."""
    for sign in (1, -1):
        base = np.zeros(len(bins))
        for name, part in parts.items():
            top = base + sign * np.maximum(sign * np.nan_to_num(part), 0)
            if len(bins) == 1:
                ax.bar(bins.centre, top - base, 0.8, base, color=PUSH_COLOURS[name])
            else:
                ax.fill_between(bins.centre, base, top, color=PUSH_COLOURS[name], linewidth=0)
            base = top
