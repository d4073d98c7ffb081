"""The effective magnitudes of both gradients: what AdaDPO balances, and whether it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from dyn_probe.report import pair_columns
from dyn_probe.report.availability import why_absent
from dyn_probe.report.curves import Curve, draw_bands
from dyn_probe.report.frames import step_bins
from dyn_probe.report.run_facts import ceiling
from dyn_probe.report.style import CASE_COLOURS, NEUTRAL, SIDE_COLOURS, empty_figure, name_panel, new_figure, rule

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

TITLE = "Effective magnitudes"


def effective_magnitudes(trace: Trace) -> Figure:
    """Shows: how large the two gradients are once the loss has weighted them. From left to right: d_w‖g_w‖ and
    d_l‖g_l‖; their ratio; the ratio of the pulls on probabilities, d_w/p_w : d_l/p_l, with p = e^(h/n), the per-token
    ratio to the reference (the per-token probability e^ā, e^b̄ where there is none), and the same with p_w/p_l counted
    up to AdaDPO's ceiling C only; and its logarithm with p = e^h of the whole responses. Line: median; band:
    interquartile range.

    How to read: AdaDPO (Chen et al. 2026) asks for d_w/p_w = d_l/p_l: the ratios at 1, the logarithm at 0. Under DPO,
    where d_w = d_l, the ratio falls below 1 as chosen gets ahead of rejected: the loss then acts harder on rejected
    than on chosen. With AdaDPO the per-token ratio stays at 1 until the ceiling is reached, and the one with the
    ceiling stays at 1 throughout. The magnitudes are balanced only where the norms are too.

    Needs: pulls, gradients, log-probabilities and lengths.
    """
    lack = why_absent(trace, "pairs.pull_chosen", "pairs.pull_rejected", "pairs.grad_norm_chosen", "pairs.len_chosen")
    if lack:
        return empty_figure(TITLE, lack)
    pairs, bins = trace.pairs, step_bins(trace.pairs)
    figure, axes = new_figure(4, height=3.0, width=12.6)
    panels = (
        ("Magnitudes", "d‖g‖"),
        ("Their ratio", ""),
        ("Pulls on probabilities", "ratio"),
        ("Whole responses", "nats"),
    )
    for ax, (title, unit) in zip(axes, panels, strict=True):
        name_panel(ax, title, unit)
    magnitudes = [Curve(side, pair_columns.magnitude(pairs, side), SIDE_COLOURS[side]) for side in pair_columns.SIDES]
    draw_bands(axes[0], bins, magnitudes)
    for ax, at in zip(axes[1:], (1, 1, 0), strict=True):
        rule(ax, at, "balanced")
    draw_bands(axes[1], bins, [Curve("", pair_columns.magnitude_ratio(pairs), NEUTRAL)])
    capped = pair_columns.balance_ceiling(pairs, ceiling(trace.about))
    curves = [
        Curve("per token", pair_columns.balance_token(pairs), NEUTRAL),
        Curve("with ceiling", capped, CASE_COLOURS[3], dashed=True),
    ]
    draw_bands(axes[2], bins, curves)
    draw_bands(axes[3], bins, [Curve("", np.asarray(pair_columns.balance_raw(pairs)), NEUTRAL)])
    return figure
