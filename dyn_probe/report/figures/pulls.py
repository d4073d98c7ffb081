"""The pulls of the objective over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from dyn_probe.report import derived
from dyn_probe.report.curves import Curve, draw_bands
from dyn_probe.report.frames import numbers, step_bins
from dyn_probe.report.needs import why_absent
from dyn_probe.report.style import NEUTRAL, SIDE_COLOURS, empty_figure, name_panel, new_figure, rule

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def pulls(trace: Trace) -> Figure:
    """Shows: the pulls d_w = −∂ℓ/∂a (how strongly the loss pushes chosen up) and d_l = ∂ℓ/∂b (how strongly
    it pushes rejected down), and their ratio. Line: median; band: middle half of the pairs.

    How to read: an objective acts on a pair through these two numbers only. Falling pulls mean that the
    loss is content and training fades out; a pull of 0 leaves the pair untouched. DPO has d_w = d_l (ratio
    1) for every pair; an SFT term or AdaDPO raises the ratio, a gate on the rejected side too. Negative
    pulls mean that the loss has passed its target.

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
        for side in derived.SIDES
    ]
    draw_bands(left, bins, curves)
    name_panel(right, "Ratio of the pulls", "$d_w / d_l$")
    rule(right, 1, "equal pulls")
    draw_bands(right, bins, [Curve("", derived.pull_ratio(pairs), NEUTRAL)], within=(-5, 5))
    return figure
