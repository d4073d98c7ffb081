"""Shares of the four cases over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dyn_probe.report.availability import why_absent
from dyn_probe.report.basis import BASES, basis_of, case_of, completed
from dyn_probe.report.curves import fit_steps
from dyn_probe.report.frames import Bins, Floats, finite, step_bins
from dyn_probe.report.style import CASE_COLOURS, LABEL, MUTED, name_panel, new_figure, say
from dyn_probe.trace.schema import CASES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def cases(trace: Trace) -> Figure:
    """Shows: the share of pairs in each case. 1: chosen up, rejected down (ideal); 2: both down; 3: both up;
    4: chosen down, rejected up. Left: by what moved the pairs, as the title says: realised, else along the optimizer's
    own step; right: predicted for one plain gradient step on each pair alone.

    How to read: the left panel is what happened; the right one holds the pair's own gradients and pulls alone, without
    the other pairs of the batch, earlier steps and the optimizer. Where both have much case 2, the pair itself can
    explain that chosen falls; where only the left one has, look at the pushes. Without anything measured the left
    panel says what is missing, and the right one says nothing about what the optimizer did.

    Needs: the realised changes or the optimizer's steps taken apart; for the right panel, the gradients of the pairs.
    """
    figure, (left, right) = new_figure(2, height=3.2)
    pairs = completed(trace)
    bins, shown = step_bins(pairs), measured_basis(pairs)
    name_panel(left, BASES[shown].title, "share of pairs")
    needs = ("pairs.realised_delta_chosen", "pairs.realised_delta_rejected")
    measured = case_of(pairs, shown)
    _stack(left, bins, measured, None if len(finite(measured)) else why_absent(trace, *needs))
    name_panel(right, BASES["plain"].title, "share of pairs")
    _stack(right, bins, case_of(pairs, "plain"), why_absent(trace, "pairs.case_plain"))
    _legend(figure)
    return figure


def measured_basis(pairs: pd.DataFrame) -> str:
    """The basis of the left panel: the run's own, `realised` where nothing but a plain step is known."""
    found = basis_of(pairs)
    return "realised" if found == "plain" else found


def case_shares(bins: Bins, case: Floats) -> Floats:
    """Share of each case among the rows of a bin that have one: [4 cases, bins]."""
    return np.array([bins.means(np.where(np.isfinite(case), case == number, np.nan)) for number in CASES])


def _stack(ax: Axes, bins: Bins, case: Floats, lack: str | None) -> None:
    if lack or not len(finite(case)):
        return say(ax, lack or "no case was recorded")
    found = case_shares(bins, case)
    known = np.isfinite(found[0])  # a bin between two scheduled measurements has none
    shares, centres = found[:, known], bins.centre[known]
    colours = [CASE_COLOURS[number] for number in CASES]
    fit_steps(ax, bins)
    x = centres if len(centres) > 1 else np.array([centres[0] - 0.5, centres[0] + 0.5])
    wide = shares if len(centres) > 1 else np.repeat(shares, 2, axis=1)
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
