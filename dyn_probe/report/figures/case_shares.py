"""Shares of the four cases over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dyn_probe import entanglement
from dyn_probe.report.availability import why_absent
from dyn_probe.report.curves import fit_steps
from dyn_probe.report.frames import Bins, Floats, finite, numbers, step_bins
from dyn_probe.report.style import CASE_COLOURS, LABEL, MUTED, name_panel, new_figure, say
from dyn_probe.trace.schema import CASES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def cases(trace: Trace) -> Figure:
    """Shows: the share of pairs in each case. 1: chosen up, rejected down (ideal); 2: both down; 3: both up;
    4: chosen down, rejected up. Left: predicted for one plain gradient step on each pair alone; right: by
    the changes measured across the optimizer's update.

    How to read: the left panel reflects the pair's own gradients and pulls; the right one includes everything else:
    the other pairs of the batch, the optimizer, clipping. A large share of case 2 on the left means that the objective
    itself pushes chosen down; if it is large only on the right, other pairs or the optimizer do.

    Needs: the gradients of the pairs; for the right panel, realised changes.
    """
    figure, (left, right) = new_figure(2, height=3.2)
    bins = step_bins(trace.pairs)
    name_panel(left, "Predicted, each pair alone", "share of pairs")
    _stack(left, bins, numbers(trace.pairs, "case_plain"), why_absent(trace, "pairs.case_plain"))
    name_panel(right, "Realised after the update", "share of pairs")
    needs = ("pairs.realised_delta_chosen", "pairs.realised_delta_rejected")
    _stack(right, bins, realised_case(trace), why_absent(trace, *needs))
    _legend(figure)
    return figure


def realised_case(trace: Trace) -> Floats:
    """Case by the signs of the realised changes: [rows], NaN where they were not measured."""
    up = numbers(trace.pairs, "realised_delta_chosen")
    down = numbers(trace.pairs, "realised_delta_rejected")
    case = entanglement.cases(up, down)
    return np.where(case > 0, case, np.nan)


def case_shares(bins: Bins, case: Floats) -> Floats:
    """Share of each case among the rows of a bin that have one: [4 cases, bins]."""
    return np.array([bins.means(np.where(np.isfinite(case), case == number, np.nan)) for number in CASES])


def _stack(ax: Axes, bins: Bins, case: Floats, lack: str | None) -> None:
    if lack or not len(finite(case)):
        return say(ax, lack or "no case was recorded")
    shares = np.nan_to_num(case_shares(bins, case))
    colours = [CASE_COLOURS[number] for number in CASES]
    fit_steps(ax, bins)
    x = bins.centre if len(bins) > 1 else np.array([bins.centre[0] - 0.5, bins.centre[0] + 0.5])
    wide = shares if len(bins) > 1 else np.repeat(shares, 2, axis=1)
    ax.stackplot(x, wide, colors=colours, edgecolor="white", linewidth=0.6)
    ax.set_ylim(0, 1)
    ax.grid(visible=False)
    return None


def _legend(figure: Figure) -> None:
    marks = [Patch(color=CASE_COLOURS[number], label=f"{number} · {name}") for number, name in CASES.items()]
    figure.legend(
        handles=marks,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=LABEL,
        labelcolor=MUTED,
        handlelength=1.0,
        handleheight=1.0,
    )
