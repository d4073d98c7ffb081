"""How far each pair moved: change of chosen against change of rejected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_probe import entanglement
from dyn_probe.report.availability import why_absent
from dyn_probe.report.changes import Change, run_change
from dyn_probe.report.frames import Floats, finite
from dyn_probe.report.style import CASE_COLOURS, MUTED, empty_figure, name_panel, new_figure
from dyn_probe.trace.schema import CASES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

TITLE = "Movement of each pair"
CORNERS = {1: (0.02, 0.98, "left", "top"), 3: (0.98, 0.98, "right", "top"), 2: (0.02, 0.02, "left", "bottom"),
           4: (0.98, 0.02, "right", "bottom")}  # fmt: skip
MOST_POINTS = 3000


def movement(trace: Trace) -> Figure:
    """Shows: one dot per pair: how far its chosen (vertical) and its rejected response (horizontal) moved
    over the run, per token. What is compared (the same pairs at start and end, or the reference) is written under
    the panel.

    How to read: the upper left is what preference training is for. Dots to the right of the dashed diagonal have
    lost margin per token; dots in the lower left and above it have gained margin only because rejected fell further.

    Needs: log-probabilities, lengths, and pairs that recur or a reference equal to the starting model.
    """
    moved = run_change(trace)
    if moved is None or not moved.paired:
        text = "not recorded: needs pairs that recur, or a reference equal to the starting model"
        return empty_figure(TITLE, why_absent(trace, "pairs.logp_chosen") or text)
    figure, (ax,) = new_figure(1, height=4.2, width=5.8)
    name_panel(ax, TITLE, "chosen (nats per token)", f"rejected (nats per token)\n{moved.basis}")
    draw_plane(ax, moved)
    return figure


def draw_plane(ax: Axes, moved: Change) -> None:
    """Dots coloured by quadrant, with each quadrant's share of the pairs in its corner."""
    x, y = moved.rejected, moved.chosen
    case = entanglement.cases(y, x)
    keep = slice(None, None, max(1, len(x) // MOST_POINTS))
    across, along = reach(x), reach(y)
    ax.scatter(np.clip(x, *across)[keep], np.clip(y, *along)[keep], s=14, alpha=0.6, linewidths=0,
               color=[CASE_COLOURS[int(number)] for number in case[keep]], rasterized=True)  # fmt: skip
    ax.set(xlim=across, ylim=along)
    ax.grid(visible=False)
    ax.axhline(0, color="#9AA5B1", linewidth=0.9)
    ax.axvline(0, color="#9AA5B1", linewidth=0.9)
    ax.axline((0, 0), slope=1, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    for number, (left, bottom, side, edge) in CORNERS.items():
        text = f"{CASES[number]}\n{(case == number).mean():.0%}"
        ax.text(left, bottom, text, transform=ax.transAxes, ha=side, va=edge, fontsize=8.2,
                color=CASE_COLOURS[number], fontweight="bold")  # fmt: skip


def reach(values: Floats) -> tuple[float, float]:
    """Axis limits that hold 0 and the middle 98 % of the values, with room for the words."""
    kept = finite(values)
    low, high = min(0.0, float(np.quantile(kept, 0.01))), max(0.0, float(np.quantile(kept, 0.99)))
    room = 0.25 * (high - low) or 1.0
    return low - room, high + room
