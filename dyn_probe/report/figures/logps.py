"""Log-probabilities of chosen and rejected over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_probe.report import pair_columns
from dyn_probe.report.availability import why_absent
from dyn_probe.report.curves import Curve, draw_bands
from dyn_probe.report.frames import Floats, finite, numbers, step_bins
from dyn_probe.report.style import SIDE_COLOURS, name_panel, new_figure, rule, say

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def log_probs(trace: Trace) -> Figure:
    """Shows: log-probability of the chosen and the rejected response; left summed over the response, middle
    its change per token since the first step at which the pair was recorded, right per token relative to the
    reference policy. Line: median over pairs; band: interquartile range.

    How to read: a rising margin says nothing about the direction of either line. Below 0 in the middle and right
    panels a response has become less probable: −0.1 nats/token means that its tokens are 0.90 times as probable
    (geometric mean), −0.7 half as probable. Both lines falling is case 2; look at how far they fall, not only at the
    gap between them.

    Needs: log-probabilities and lengths; for the right panel a reference, for the middle one pairs that recur.
    """
    figure, (left, middle, right) = new_figure(3, height=3.2)
    _draw(trace, left, "Log-probability", "nats per sequence", [_logp(trace, side) for side in pair_columns.SIDES])
    since = [pair_columns.since_first(trace.pairs, side) for side in pair_columns.SIDES]
    _draw(trace, middle, "Change since first recorded", "nats per token", since, "no pair was recorded twice")
    against = [pair_columns.since_reference(trace.pairs, side) for side in pair_columns.SIDES]
    lack = why_absent(trace, "pairs.ref_logp_chosen") or ""
    _draw(trace, right, "Relative to the reference", "nats per token", against, lack)
    return figure


def _logp(trace: Trace, side: str) -> Floats:
    return numbers(trace.pairs, f"logp_{side}")


def _draw(trace: Trace, ax: Axes, title: str, unit: str, values: list[Floats], lack: str = "") -> None:
    name_panel(ax, title, unit)
    if not any(len(finite(value)) for value in values):
        return say(ax, lack or why_absent(trace, "pairs.logp_chosen") or "not recorded")
    if "token" in unit:
        rule(ax, 0)
    curves = [Curve(side, value, SIDE_COLOURS[side]) for side, value in zip(pair_columns.SIDES, values, strict=True)]
    return draw_bands(ax, step_bins(trace.pairs), curves)
