"""Coefficients of gradient shaping over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from dyn_probe.report.curves import Curve, draw_bands
from dyn_probe.report.frames import numbers, recorded, step_bins
from dyn_probe.report.style import NEUTRAL, SIDE_COLOURS, empty_figure, name_panel, new_figure, rule

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

CHOSEN, REJECTED = SIDE_COLOURS["chosen"], SIDE_COLOURS["rejected"]

PANELS: tuple[tuple[str, str, tuple[tuple[str, str, str], ...]], ...] = (
    ("Gate g (Gate-DPO)", "factor on rejected", (("gate", "", REJECTED),)),
    ("Gate statistic s", "token probability", (("gate_statistic", "", NEUTRAL),)),
    ("ρ (AdaDPO)", "factor on chosen", (("rho", "", CHOSEN),)),
    (
        "Normalisers",
        "factor on the pull",
        (("normaliser_chosen", "chosen", CHOSEN), ("normaliser_rejected", "rejected", REJECTED)),
    ),
    ("Token mask", "mean mask", (("mask_chosen", "chosen", CHOSEN), ("mask_rejected", "rejected", REJECTED))),
)
"""Panel title, unit, and its (column, label, colour) curves."""


def shaping(trace: Trace) -> Figure:
    """Shows: the coefficients by which gradient shaping changes the pulls: the gate and its statistic
    (Gate-DPO), ρ (AdaDPO), normalisers (factors on the pulls once gradient norms are known), mean token masks. Line:
    median; band: interquartile range.

    How to read: a factor of 1 leaves the objective unchanged. A gate near 0 switches the rejected contribution
    off, because the rejected response is already improbable; ρ above 1 pulls chosen harder, up to its ceiling, and ρ
    below 1 less hard.

    Needs: a run with shaping.
    """
    found = [panel for panel in PANELS if any(recorded(trace.pairs, column) for column, _, _ in panel[2])]
    if not found:
        return empty_figure("Shaping", "not recorded: this run has no gradient shaping")
    figure, axes = new_figure(len(found), height=2.9, width=min(9.6, 4.8 * len(found)))
    bins = step_bins(trace.pairs)
    for ax, (title, unit, columns) in zip(axes, found, strict=True):
        name_panel(ax, title, unit)
        if "factor" in unit:
            rule(ax, 1, "unshaped")
        curves = [Curve(label, numbers(trace.pairs, column), colour) for column, label, colour in columns]
        draw_bands(ax, bins, curves)
    return figure
