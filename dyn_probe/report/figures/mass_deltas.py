"""What each method did to its probe responses: one dot per run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_probe.errors import BadInput
from dyn_probe.mass.squeezing import compare_runs
from dyn_probe.report.style import RUN_COLOURS, empty_figure, name_panel, new_figure, rule

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

PANELS = {
    "delta_chosen": "Δ chosen",
    "delta_rejected": "Δ rejected",
    "delta_others": "Δ unrelated, shuffled",
    "delta_argmax": "Δ argmax",
}
"""Run-level figure → panel title."""


def compare_deltas(traces: Mapping[str, Trace]) -> Figure:
    """Shows: change of the probe responses' log-probability from the first to the last recorded step, one dot per
    run, one column per method (objective and shaping), a bar at each method's mean. Panels: chosen, rejected,
    the unrelated and shuffled responses, and the most probable token at each position (argmax).

    How to read: squeezing is prevented where Δ chosen is above 0. Where all responses fall far while Δ argmax rises,
    the method gains its margin by squeezing the whole distribution.

    Needs: probe responses at the first and the last step (--mass-every).
    """
    runs, lacking = _figures(traces)
    if runs.empty:
        return empty_figure(
            "Change per method", f"not recorded: needs probe responses (--mass-every) at two steps: {lacking}"
        )
    figure, axes = new_figure(len(PANELS), height=3.2)
    for ax, (column, title) in zip(axes, PANELS.items(), strict=True):
        name_panel(ax, title, "nats per sequence" if ax is axes[0] else "", x="")
        rule(ax, 0)
        _strip(ax, runs, column)
    return figure


def method_of(trace: Trace) -> str:
    """Objective and shapings as run.json names them, without their options: a label has no room for those."""
    about = trace.about
    objective = about.objective.name or about.config.get("objective")
    shapings = ", ".join(one.name for one in about.objective.shaping)
    return "\n".join(str(name) for name in (objective, shapings) if name) or "unnamed"


def _figures(traces: Mapping[str, Trace]) -> tuple[pd.DataFrame, str]:
    """One row of run-level figures per run that has them, and the names of the runs that do not."""
    rows, lacking = [], []
    for label, trace in traces.items():
        try:
            rows.append(compare_runs([(method_of(trace), trace.mass)]))
        except BadInput:
            lacking.append(label)
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(), ", ".join(lacking)


def _strip(ax: Axes, runs: pd.DataFrame, column: str) -> None:
    methods = list(dict.fromkeys(runs["method"]))
    for place, method in enumerate(methods):
        values = runs.loc[runs["method"] == method, column].to_numpy(dtype=float)
        colour = RUN_COLOURS[place % len(RUN_COLOURS)]
        spread = (np.arange(len(values)) - (len(values) - 1) / 2) * min(0.12, 0.5 / max(1, len(values)))
        ax.scatter(place + spread, values, s=26, color=colour, alpha=0.8, linewidths=0, zorder=3)
        ax.hlines(values.mean(), place - 0.3, place + 0.3, color=colour, linewidth=1.8)
    slanted = len(methods) > 3
    ax.set_xticks(range(len(methods)), methods, rotation=40 if slanted else 0, parse_math=False)
    for label in ax.get_xticklabels():
        label.set_horizontalalignment("right" if slanted else "center")
    ax.set_xlim(-0.6, len(methods) - 0.4)
    sizes = np.abs(runs[column].to_numpy(dtype=float))
    usual = float(np.nanmedian(sizes)) if np.isfinite(sizes).any() else 0.0
    if usual and np.nanmax(sizes) > 20 * usual:
        ax.set_yscale("symlog", linthresh=2 * usual)
