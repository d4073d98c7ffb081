"""The one figure of the first screen: how far both sides moved, and under it what pushed them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dyn_probe.report.availability import why_absent
from dyn_probe.report.changes import run_start
from dyn_probe.report.curves import Curve, draw_bands
from dyn_probe.report.figures.push_stack import draw_side
from dyn_probe.report.frames import Floats, finite, numbers, step_bins
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.push_parts import PARTS
from dyn_probe.report.style import LABEL, MUTED, PUSH_COLOURS, SIDE_COLOURS, name_panel, rule, say, tidy

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

SIZE = (6.4, 5.3)


def story(trace: Trace) -> Figure:
    """Shows: above, how far chosen and rejected have moved per token since the start of the run (line: median over the
    pairs of a bin of steps; band: interquartile range). Below, what moved each of them in the steps that train its own
    pair: the pushes of a step, above 0 where they raise the response and below where they lower it; black: their total.

    How to read: a line below 0 is a response that has become less probable. The panels under it show which pushes lie
    below 0 in its own steps: its own pair, other pairs of the batch, or what past steps left in the momentum. A
    response also moves in the steps that train other pairs, most of a run; the headline says how much of it came there.

    Needs: log-probabilities; for the lower panels the optimizer's steps taken apart.
    """
    figure = Figure(figsize=SIZE, layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.1, 1.0))
    top, *below = (figure.add_subplot(place) for place in (grid[0, :], grid[1, 0], grid[1, 1]))
    for ax in (top, *below):
        tidy(ax)
    _moved(top, trace)
    drawn: set[str] = set()
    lack = why_absent(trace, "pushes.total")
    for ax, side in zip(below, SIDES, strict=True):
        name_panel(ax, f"Pushes on {side} in its own steps", "nats per step" if side == "chosen" else "")
        if lack:
            say(ax, lack, 26)
        else:
            drawn |= draw_side(ax, trace, side, labels=False)
    marks = [Patch(color=PUSH_COLOURS[name], label=text) for name, text in PARTS.items() if name in drawn]
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False, fontsize=LABEL,
                      labelcolor=MUTED)  # fmt: skip
    return figure


def _moved(ax: Axes, trace: Trace) -> None:
    name_panel(ax, "Log-probability since the start of the run", "nats per token", x="")
    values = {side: since_start(trace, side) for side in SIDES}
    if not any(len(finite(value)) for value in values.values()):
        return say(ax, why_absent(trace, "pairs.logp_chosen") or "no pair was measured twice")
    rule(ax, 0)
    return draw_bands(ax, step_bins(trace.pairs), [Curve(side, values[side], SIDE_COLOURS[side]) for side in SIDES])


def since_start(trace: Trace, side: str) -> Floats:
    """Change per token of each row since the start of the run [rows]: since before training where that is known (the
    reference, or the table `final`), else since the pair's first recorded row; nats/token."""
    start = numbers(run_start(trace).reindex(trace.pairs["pair_id"]), f"logp_{side}")
    moved = numbers(trace.pairs, f"logp_{side}") - start
    lengths = numbers(trace.pairs, f"len_{side}")
    return np.divide(moved, lengths, out=np.full(len(moved), np.nan), where=lengths > 0)
