"""Norms of the chosen and rejected gradients over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from dyn_probe.report import pair_columns
from dyn_probe.report.availability import why_absent
from dyn_probe.report.curves import Curve, draw_bands
from dyn_probe.report.frames import numbers, step_bins
from dyn_probe.report.style import NEUTRAL, SIDE_COLOURS, empty_figure, name_panel, new_figure, rule

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def grad_norms(trace: Trace) -> Figure:
    """Shows: ‖g_w‖ and ‖g_l‖, the norms of the gradients of the two log-probabilities over all trained
    parameters; their ratio; and ‖d_w g_w − d_l g_l‖, the norm of the gradient of one pair's loss. Line: median;
    band: interquartile range.

    How to read: g_w and g_l do not depend on the loss; they grow as a response becomes less probable. The gradient of
    the loss is small when the pulls are small (the loss is saturated) or when the two gradients cancel. Where the
    pulls are equal (plain DPO), a ratio below the cosine means that chosen falls, one above 1/cosine that rejected
    rises.

    Needs: the gradients of the pairs; for the right panel, the pulls.
    """
    lack = why_absent(trace, "pairs.grad_norm_chosen", "pairs.grad_norm_rejected")
    if lack:
        return empty_figure("Gradient norms", lack)
    figure, (left, middle, right) = new_figure(3, height=3.0)
    pairs, bins = trace.pairs, step_bins(trace.pairs)
    name_panel(left, "Gradient of the log-probability", "nats per parameter unit")
    norms = [Curve(side, numbers(pairs, f"grad_norm_{side}"), SIDE_COLOURS[side]) for side in pair_columns.SIDES]
    draw_bands(left, bins, norms)
    name_panel(middle, "Ratio of the norms", r"$\Vert g_w\Vert \, / \, \Vert g_l\Vert$")
    rule(middle, 1, "equal norms")
    draw_bands(middle, bins, [Curve("", pair_columns.norm_ratio(pairs), NEUTRAL)])
    name_panel(right, "Gradient of one pair's loss", "nats per parameter unit")
    draw_bands(right, bins, [Curve("", pair_columns.pair_grad_norm(pairs), NEUTRAL)])
    return figure
