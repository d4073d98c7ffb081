"""Where the probability mass goes: probe responses over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_probe.report.availability import why_absent
from dyn_probe.report.curves import Curve, draw_bands, draw_line, fit_steps, label_ends
from dyn_probe.report.frames import Bins, Floats, numbers, step_bins
from dyn_probe.report.style import CASE_COLOURS, NEUTRAL, SIDE_COLOURS, empty_figure, name_panel, new_figure, rule

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def mass(trace: Trace) -> Figure:
    """Shows: probe responses, which are scored at every measurement whether or not they are trained on. Left: mean
    change of their log-probability per token since the first measurement, one line per kind; right: the same for the
    most probable token at each position (argmax) and for all probe responses together.

    How to read: if all kinds fall while argmax rises, probability mass is being squeezed onto what the model would
    say anyway, an early sign of repetition. Healthy training raises chosen and leaves unrelated responses where they
    are.

    Needs: probe responses (--mass-every).
    """
    lack = why_absent(trace, "mass.logp_token")
    if lack:
        return empty_figure("Probability mass", lack)
    figure, (left, right) = new_figure(2, height=3.2)
    bins = step_bins(trace.mass)
    name_panel(left, "Change by response kind", "nats per token")
    rule(left, 0)
    _kinds(left, bins, trace.mass)
    name_panel(right, "Most probable token", "nats per token")
    rule(right, 0)
    argmax = since_start(trace.mass, numbers(trace.mass, "argmax_logp") / numbers(trace.mass, "tokens"))
    observed = since_start(trace.mass, numbers(trace.mass, "logp_token"))
    draw_bands(right, bins, [Curve("argmax", argmax, CASE_COLOURS[2]), Curve("probe responses", observed, NEUTRAL)])
    return figure


def since_start(frame: pd.DataFrame, values: Floats) -> Floats:
    """Change of each probe response since its own first recorded step: [rows]."""
    order = np.argsort(numbers(frame, "step"), kind="stable")
    keys = frame[["prompt_id", "kind"]].iloc[order]
    ordered = pd.Series(values[order])
    first = ordered.groupby([keys[name].to_numpy() for name in keys], sort=False).transform("first")
    change = np.empty(len(values))
    change[order] = (ordered - first).to_numpy()
    return change


def _kinds(ax: Axes, bins: Bins, frame: pd.DataFrame) -> None:
    change = since_start(frame, numbers(frame, "logp_token"))
    ends = []
    for kind in dict.fromkeys(frame["kind"]):
        values = np.where(frame["kind"] == kind, change, np.nan)
        colour = SIDE_COLOURS.get(kind, "#8A94A0")
        ends.append(draw_line(ax, bins.centre, bins.means(values), Curve(str(kind), values, colour)))
    fit_steps(ax, bins)
    label_ends(ax, [end for end in ends if end is not None], gap=0.065)
