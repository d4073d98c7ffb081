"""Norm of the step's gradient before and after clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from dyn_probe.report.availability import why_absent
from dyn_probe.report.curves import Curve, draw_line, label_ends
from dyn_probe.report.frames import Floats, finite, numbers
from dyn_probe.report.style import NEUTRAL, RUN_COLOURS, empty_figure, name_panel, new_figure

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

MOST_POINTS = 4000


def clipping(trace: Trace) -> Figure:
    """Shows: the gradient norm of each optimizer step, before clipping and after it (what the optimizer saw).

    How to read: where the two lines differ, the gradient was clipped. Isolated peaks are spikes; the verdicts say
    whether norms, pulls or less cancellation caused the largest. A flat line at 0 means that no pair has a pull.

    Needs: gradient norms of the steps.
    """
    lack = why_absent(trace, "steps.grad_norm")
    if lack:
        return empty_figure("Gradient norm of the step", lack)
    figure, (ax,) = new_figure(1, height=2.9)
    name_panel(ax, "Gradient norm of the step", "nats per parameter unit")
    step, before, after = step_norms(trace)
    ends = [draw_line(ax, step, before, Curve("before clipping", before, NEUTRAL))]
    if len(finite(after)):
        ends.append(draw_line(ax, step, after, Curve("after clipping", after, RUN_COLOURS[1], dashed=True)))
    positive = finite(before)[finite(before) > 0]
    if len(positive) and positive.max() > 30 * np.median(positive):
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    if len(step) == 1:
        ax.set_xticks(step)
    label_ends(ax, [end for end in ends if end is not None])
    return figure


def step_norms(trace: Trace) -> tuple[Floats, Floats, Floats]:
    """(step, norm before, norm after clipping): one value per step over all ranks; long runs by maxima."""
    frame = trace.steps[["step", "grad_norm", "grad_norm_clipped"]].groupby("step", as_index=False).max()
    columns = [numbers(frame, name) for name in ("step", "grad_norm", "grad_norm_clipped")]
    width = int(np.ceil(len(frame) / MOST_POINTS))
    if width <= 1:
        return columns[0], columns[1], columns[2]
    starts = np.arange(0, len(frame), width)
    tops = [np.fmax.reduceat(column, starts) for column in columns[1:]]
    return columns[0][starts], tops[0], tops[1]
