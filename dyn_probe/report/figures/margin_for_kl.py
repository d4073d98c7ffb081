"""What a margin costs: held-out margin against the KL to the reference, a line per run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from dyn_probe.report.frames import numbers
from dyn_probe.report.style import RUN_COLOURS, empty_figure, name_panel, new_figure, short

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def compare_kl(traces: Mapping[str, Trace]) -> Figure:
    """Shows: the held-out log-ratio margin against the KL of the policy to the reference at each evaluation, a line per
    run from the start (lower left) to the end.

    How to read: the higher a line is at the same KL, the cheaper the run buys its margin. Lines that bend to the right
    go on leaving the reference without gaining margin.

    Needs: pairs that are held out, and a copy of the reference (the built-in model, or --no-precompute-reference).
    """
    lines = {label: points(trace) for label, trace in traces.items()}
    if not any(len(line) for line in lines.values()):
        return empty_figure("Margin for KL", "not recorded: needs held-out pairs and a copy of the reference")
    figure, (ax,) = new_figure(1, height=3.6, width=6.4)
    name_panel(ax, "Margin for KL", "held-out log-ratio margin (nats)", "KL to the reference (nats per token)")
    for place, (label, line) in enumerate(lines.items()):
        colour = RUN_COLOURS[place % len(RUN_COLOURS)]
        ax.plot(line[:, 0], line[:, 1], color=colour, linewidth=1.7, marker="o", markersize=4, label=short(label))
    ax.legend(frameon=False, fontsize=8)
    return figure


def points(trace: Trace) -> np.ndarray:
    """``[evaluations, 2]`` KL and margin, by step; the evaluation after the last step is in run.json."""
    steps = trace.steps.sort_values("step")
    rows = np.stack([numbers(steps, "eval_kl_ref"), numbers(steps, "eval_log_ratio_margin")], 1)
    end = [getattr(trace.about.held_out, name, None) for name in ("eval_kl_ref", "eval_log_ratio_margin")]
    rows = np.vstack([rows, np.array([[np.nan if value is None else value for value in end]], dtype=np.float64)])
    return rows[np.isfinite(rows).all(1)]
