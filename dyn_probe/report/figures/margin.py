"""Loss, margin and accuracy over steps: what is usually monitored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from dyn_probe.report import pair_columns
from dyn_probe.report.availability import why_absent
from dyn_probe.report.curves import Curve, draw_bands, draw_line, fit_steps
from dyn_probe.report.frames import numbers, recorded, step_bins
from dyn_probe.report.style import NEUTRAL, empty_figure, name_panel, new_figure, rule

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def margin(trace: Trace) -> Figure:
    """Shows: the margin score_chosen − score_rejected, where a score is what the objective compares of a
    response (run.json names it; traces without scores: log-ratios, or log-probabilities without a reference),
    the accuracy (share of pairs whose margin is above 0) and the loss per pair. Line: median (accuracy: share);
    band: interquartile range.

    How to read: these three curves look healthy in almost every run, including runs in which the chosen
    response becomes less and less probable: the margin grows whenever rejected falls faster. Read them
    together with the log-probabilities.

    Needs: log-probabilities; for the loss panel, the pairs' losses.
    """
    lack = why_absent(trace, "pairs.logp_chosen", "pairs.logp_rejected")
    if lack:
        return empty_figure("Margin, accuracy, loss", lack)
    figure, (left, middle, right) = new_figure(3, height=2.9)
    bins, value = step_bins(trace.pairs), pair_columns.margin(trace.pairs)
    name_panel(left, *margin_words(trace))
    rule(left, 0)
    draw_bands(left, bins, [Curve("", value, NEUTRAL)])
    name_panel(middle, "Accuracy", "share of pairs")
    right_order = np.where(np.isfinite(value), value > 0, np.nan)
    middle.set_ylim(-0.02, 1.02)
    rule(middle, 0.5, "coin toss")
    draw_line(middle, bins.centre, bins.means(right_order), Curve("", right_order, NEUTRAL))
    fit_steps(middle, bins)
    name_panel(right, "Loss", "nats per pair")
    draw_bands(right, bins, [Curve("", numbers(trace.pairs, "loss"), NEUTRAL)])
    return figure


def margin_words(trace: Trace) -> tuple[str, str]:
    """Title and unit of the margin: what the objective compares of a response, where the trace says it."""
    score = trace.about.objective.score
    if score and recorded(trace.pairs, "score_chosen"):
        return f"Margin of {score.formula or '—'}", (score.unit or "—").replace("/", " per ")
    known = recorded(trace.pairs, "ref_logp_chosen")
    return ("Margin", "nats per sequence") if known else ("Margin a − b (no reference)", "nats per sequence")
