"""How certain the model is at the positions of the probe responses, and where the target ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from dyn_probe.report.availability import missing, remedy, why_absent
from dyn_probe.report.curves import Curve, draw_line, fit_steps, label_ends
from dyn_probe.report.figures.mass_split import GROUPS, group_of
from dyn_probe.report.frames import Bins, Floats, numbers, step_bins
from dyn_probe.report.style import empty_figure, name_panel, new_figure, say

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

LABELS = {"chosen": "chosen", "rejected": "rejected", "others": "others", "near": "own, rephrased"}
COLOURS = {**{group: colour for group, (_, colour) in GROUPS.items()}, "near": "#5AA9C9"}
PANELS = (
    ("entropy", "Entropy", "nats per position"),
    ("rank", "Rank of the target", "more probable tokens"),
    ("top1", "Target is the argmax", "share of positions"),
)


def mass_entropy(trace: Trace) -> Figure:
    """Shows: means over the probe responses of each group; the model's own first answers and the rephrased
    responses form one group. Left: entropy of the model's distribution at a position; middle: rank of the target
    token (0 is the top), on a logarithmic scale from 1 up; right: share of positions whose most probable token is
    the target.

    How to read: if entropy falls for every group while the target's rank does not improve, the model becomes certain
    of something else, which is squeezing. In a healthy run rank and top-1 share of chosen improve.

    Needs: probe responses (--mass-every).
    """
    lack = why_absent(trace, "mass.entropy")
    if lack:
        return empty_figure("Entropy and rank", lack)
    figure, axes = new_figure(3, height=3.1)
    bins = step_bins(trace.mass)
    for ax, (column, title, unit) in zip(axes, PANELS, strict=True):
        name_panel(ax, title, unit)
        need = f"mass.{column}"
        if missing(trace, (need,)):
            say(ax, f"not recorded: needs {remedy(need)}")
        else:
            _lines(ax, trace.mass, bins, numbers(trace.mass, column), column)
    return figure


def _lines(ax: Axes, frame: pd.DataFrame, bins: Bins, values: Floats, column: str) -> None:
    groups, ends = group_of(frame["kind"]), []
    for group, colour in COLOURS.items():
        own = np.where(groups == group, values, np.nan)
        ends.append(draw_line(ax, bins.centre, bins.means(own), Curve(LABELS[group], own, colour)))
    fit_steps(ax, bins)
    if column == "rank":
        ax.set_yscale("symlog", linthresh=1)
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(ScalarFormatter())
    if column == "top1":
        ax.set_ylim(-0.02, 1.02)
    label_ends(ax, [end for end in ends if end is not None])
