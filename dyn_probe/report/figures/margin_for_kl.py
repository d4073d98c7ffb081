"""What a margin costs: held-out margin against the KL to the reference, for one run and for several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_probe.report.curves import Curve, draw_line, fit_steps, label_ends
from dyn_probe.report.figures.mass_entropy import COLOURS, LABELS
from dyn_probe.report.figures.mass_split import group_of
from dyn_probe.report.frames import numbers, step_bins
from dyn_probe.report.side_by_side.kl_price import KL, at_one_kl, kl_column, kl_over_steps, margin_points
from dyn_probe.report.style import NEUTRAL, RUN_COLOURS, empty_figure, name_panel, new_figure, say, short

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

LACK = "not recorded: needs held-out pairs (--eval-fraction) or probe responses (--mass-every)"
UNIT = "KL to the reference (nats per token)"


def margin_for_kl(trace: Trace) -> Figure:
    """Shows: left, the log-ratio margin of the held-out pairs against the KL of the policy to the reference, a point
    per evaluation from the start of training (lower left) to its end. Right, that KL over steps: the mean over the
    held-out pairs, and over the probe responses of each group. The reference is the policy at the start; the KL is
    that of the next token, KL(π‖π_ref), a mean over the positions of the recorded responses.

    How to read: the left line rises while training buys margin with distance; where it turns to the right the policy
    goes on leaving the reference without gaining margin, and an earlier step would have been as good. On the right, KL
    that grows on unrelated responses as fast as on chosen and rejected is drift that the preferences did not ask for.

    Needs: held-out pairs (--eval-fraction), or probe responses (--mass-every) for the right panel.
    """
    points, mass = margin_points(trace), _mass_column(trace)
    if not len(points) and not mass:
        return empty_figure("KL to the reference", LACK)
    figure, (left, right) = new_figure(2, height=3.3, ratios=(1, 1.25))
    exact = kl_column(trace) == KL[0]
    name_panel(left, "Margin for KL", "held-out log-ratio margin (nats)", UNIT if exact else f"{UNIT}, sampled")
    if len(points):
        left.plot(points[:, 0], points[:, 1], color=NEUTRAL, linewidth=1.7, marker="o", markersize=4)
    else:
        say(left, "not recorded: needs held-out pairs (--eval-fraction)", 36)
    name_panel(right, "KL over training", "nats per token")
    _over_steps(right, trace, mass)
    return figure


def _mass_column(trace: Trace) -> str:
    """Which kind of KL the probe responses have; "" for none."""
    return next((name for name in KL if np.isfinite(numbers(trace.mass, name)).any()), "")


def _over_steps(ax: Axes, trace: Trace, mass: str) -> None:
    taken, values = kl_over_steps(trace).T
    ends = [draw_line(ax, taken, values, Curve("held-out", values, NEUTRAL, dashed=True))]
    reach = [numbers(trace.steps, "step"), taken]
    if mass:
        bins, groups = step_bins(trace.mass), group_of(trace.mass["kind"])
        for group, colour in COLOURS.items():
            own = np.where(groups == group, numbers(trace.mass, mass), np.nan)
            ends.append(draw_line(ax, bins.centre, bins.means(own), Curve(LABELS[group], own, colour)))
        reach.append(numbers(trace.mass, "step"))
    fit_steps(ax, step_bins(pd.DataFrame({"step": np.concatenate(reach)})))
    label_ends(ax, [end for end in ends if end is not None])


def compare_kl(traces: Mapping[str, Trace]) -> Figure:
    """Shows: the held-out log-ratio margin against the KL of the policy to the reference at each evaluation, a line per
    run from the start (lower left) to the end. The dotted line stands at the largest KL that every run reaches.

    How to read: the higher a line is at the same KL, the cheaper the run buys its margin; where the lines cross the
    dotted one they are compared. Lines that bend to the right go on leaving the reference without gaining margin.

    Needs: pairs that are held out (--eval-fraction).
    """
    lines = {label: margin_points(trace) for label, trace in traces.items()}
    if not any(len(line) for line in lines.values()):
        return empty_figure("Margin for KL", "not recorded: needs held-out pairs (--eval-fraction)")
    figure, (ax,) = new_figure(1, height=3.6, width=6.4)
    name_panel(ax, "Margin for KL", "held-out log-ratio margin (nats)", UNIT)
    for place, (label, line) in enumerate(lines.items()):
        colour = RUN_COLOURS[place % len(RUN_COLOURS)]
        ax.plot(line[:, 0], line[:, 1], color=colour, linewidth=1.7, marker="o", markersize=4, label=short(label))
    if (common := at_one_kl(traces)) is not None:
        ax.axvline(common.kl, color=NEUTRAL, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1.5)
    ax.legend(frameon=False, fontsize=8)
    return figure
