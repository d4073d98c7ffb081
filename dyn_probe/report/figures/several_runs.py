"""Several runs in one figure: overlaid curves, and scatter plots of the pairs they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_probe.report import pair_columns
from dyn_probe.report.basis import BASES as CASE_BASES
from dyn_probe.report.basis import case_of, completed
from dyn_probe.report.comparing import common_basis, common_case_basis, joined
from dyn_probe.report.curves import Curve, draw_line, label_ends
from dyn_probe.report.frames import Bins, Floats, bands, numbers, step_bins
from dyn_probe.report.style import RUN_COLOURS, name_panel, new_figure, rule, say, short

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

Traces = Mapping[str, "Trace"]
Reduce = Callable[[Bins, Floats], Floats]
Values = Callable[[pd.DataFrame], Floats] | Mapping[str, Floats]
BASES = {
    "since_reference": "nats per token, relative to the reference",
    "since_first": "nats per token, since first recorded",
    "per_token": "nats per token",
}


def compare_log_probs(traces: Traces) -> Figure:
    """Shows: the median log-probability of chosen (left) and rejected (right) per token over steps, one line
    per run: relative to the reference if all runs have one, else since the pair was first recorded, else the
    log-probability itself.

    How to read: the run whose chosen line stays highest keeps the preferred responses most probable. A lower
    rejected line is not an advantage in itself.

    Needs: log-probabilities and lengths.
    """
    basis = common_basis(traces)
    figure, axes = new_figure(2, height=3.2)
    for ax, side in zip(axes, pair_columns.SIDES, strict=True):
        name_panel(ax, side.capitalize(), BASES[basis])
        if basis != "per_token":
            rule(ax, 0)
        _overlay(ax, traces, partial(getattr(pair_columns, basis), side=side), _median)
    return figure


def compare_margin(traces: Traces) -> Figure:
    """Shows: median margin of the log-ratios (left), the share of pairs in which it is above 0 (middle), and the
    share that each run's own score orders right (right) over steps, one line per run. A log-ratio is a − r_w and
    b − r_l; in a run without a reference the change since the pair was first recorded.

    How to read: the left and the middle panel compare runs of any objective; the right one says how far each
    objective has got by what it compares itself, and no two objectives by it. Runs that hardly differ here can
    differ a lot in the log-probabilities above.

    Needs: log-probabilities.
    """
    figure, (left, middle, right) = new_figure(3, height=3.0)
    name_panel(left, "Log-ratio margin", "nats per sequence")
    rule(left, 0)
    _overlay(left, traces, pair_columns.log_ratio_margin, _median)
    for ax, title, margin in (
        (middle, "Log-ratio accuracy", pair_columns.log_ratio_margin),
        (right, "Accuracy by own score", pair_columns.margin),
    ):
        name_panel(ax, title, "share of pairs")
        ax.set_ylim(-0.02, 1.02)
        _overlay(ax, traces, partial(_positive, margin), Bins.means)
    return figure


def compare_entanglement(traces: Traces) -> Figure:
    """Shows: median cosine of the chosen and rejected gradient (left), median ratio of the pulls (middle),
    and the share of pair rows in case 2, both down (right), one line per run. The right panel's title says by what:
    realised, along the optimizer's step, or predicted for each pair alone, whichever all runs have.

    How to read: an objective acts through the pulls; the cosine is a property of the model and the data. Less
    case 2 at the same cosine is an effect of the objective.

    Needs: the gradients of the pairs and the pulls.
    """
    figure, (left, middle, right) = new_figure(3, height=3.0)
    name_panel(left, "Cosine", r"$\langle g_w, g_l\rangle \, / \, \Vert g_w\Vert\Vert g_l\Vert$")
    _overlay(left, traces, lambda pairs: numbers(pairs, "grad_cosine"), _median)
    name_panel(middle, "Ratio of the pulls", "$d_w / d_l$")
    rule(middle, 1)
    _overlay(middle, traces, pair_columns.pull_ratio, _median)
    basis = common_case_basis(traces)
    name_panel(right, f"Case 2, {CASE_BASES[basis].title.lower()}", "share of pairs")
    right.set_ylim(-0.02, 1.02)
    cases = {label: case_of(completed(trace), basis) for label, trace in traces.items()}
    case_two = {label: _is(case, lambda value: value == 2) for label, case in cases.items()}
    _overlay(right, traces, case_two, Bins.means)
    return figure


def compare_pairs(traces: Traces) -> Figure:
    """Shows: one dot per shared pair: log-probability per token at its last recorded step in the first run
    (horizontal) and in the other runs (vertical); left chosen, right rejected.

    How to read: dots above the diagonal are more probable in the other run than in the first.

    Needs: pairs that the runs share.
    """
    table = joined(traces)
    figure, axes = new_figure(2, height=3.9)
    first, *others = traces
    for ax, side in zip(axes, pair_columns.SIDES, strict=True):
        name_panel(ax, side.capitalize(), "other run (nats per token)", f"{short(first)} (nats per token)")
        ax.xaxis.label.set_parse_math(False)
        points = {label: table[label][f"logp_per_token_{side}"].to_numpy(dtype=float) for label in traces}
        _dots(ax, points[first], {label: points[label] for label in others})
    return figure


def _dots(ax: Axes, x: Floats, others: Mapping[str, Floats]) -> None:
    known = {label: y for label, y in others.items() if np.isfinite(x - y).any()}
    if not known:
        return say(ax, "the runs have no pair in common")
    for number, (label, y) in enumerate(others.items(), 1):
        colour = _colour(number)
        ax.scatter(x, y, s=12, alpha=0.5, linewidths=0, color=colour, rasterized=True)
        text = short(label) + ("" if label in known else ": no pair in common")
        place = (0.03, 1.04 - 0.07 * number)
        ax.annotate(text, place, xycoords="axes fraction", color=colour, fontsize=8.5, fontweight="bold", va="top",
                    parse_math=False)  # fmt: skip
    ax.axline((float(np.nanmedian(x)),) * 2, slope=1, color="#9AA5B1", linewidth=0.9, linestyle=(0, (2, 2)))
    return None


def _overlay(ax: Axes, traces: Traces, values: Values, reduce: Reduce) -> None:
    ends = []
    for number, (label, trace) in enumerate(traces.items()):
        bins, column = step_bins(trace.pairs), values[label] if isinstance(values, Mapping) else values(trace.pairs)
        if len(bins):
            ends.append(draw_line(ax, bins.centre, reduce(bins, column), Curve(label, column, _colour(number))))
    label_ends(ax, [end for end in ends if end is not None])


def _median(bins: Bins, values: Floats) -> Floats:
    return bands(bins, values)[:, 2]


def _positive(margin: Callable[[pd.DataFrame], Floats], pairs: pd.DataFrame) -> Floats:
    """1 where the margin is above 0, 0 where not, NaN where it is not known [rows]."""
    return _is(margin(pairs), lambda value: value > 0)


def _is(values: Floats, test: Callable[[Floats], np.ndarray]) -> Floats:
    return np.where(np.isfinite(values), test(values), np.nan)


def _colour(number: int) -> str:
    return RUN_COLOURS[number % len(RUN_COLOURS)]
