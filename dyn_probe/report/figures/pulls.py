"""The pulls of the objective over steps."""

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


def pulls(trace: Trace) -> Figure:
    """Shows: the pulls d_w = −∂ℓ/∂a (how strongly the loss pulls chosen up) and d_l = ∂ℓ/∂b (how strongly
    it pushes rejected down), and their ratio. Line: median; band: interquartile range.

    How to read: an objective acts on a pair through these two numbers alone. Falling pulls mean that the loss
    saturates; where both pulls are 0 the pair contributes nothing. Plain DPO has d_w = d_l (ratio 1) for every pair; a
    likelihood term on chosen or a gate on rejected raises the ratio. Negative pulls mean that a pair is past the
    target of the loss.

    Needs: the pulls of the loss.
    """
    lack = why_absent(trace, "pairs.pull_chosen")
    if lack:
        return empty_figure("Pulls", lack)
    figure, (left, right) = new_figure(2, height=3.0)
    pairs, bins = trace.pairs, step_bins(trace.pairs)
    name_panel(left, "Pulls", r"$d_w$ and $d_l$ (nats of loss per nat)")
    curves = [
        Curve(side, numbers(pairs, f"pull_{side}"), SIDE_COLOURS[side], dashed=side == "rejected")
        for side in pair_columns.SIDES
    ]
    draw_bands(left, bins, curves)
    name_panel(right, "Ratio of the pulls", "$d_w / d_l$")
    rule(right, 1, "equal pulls")
    draw_bands(right, bins, [Curve("", pair_columns.pull_ratio(pairs), NEUTRAL)], within=(-5, 5))
    return figure
