"""How the probability at a position is split: the target, its strongest rival, the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_probe.mass.probe_kinds import KINDS
from dyn_probe.report.availability import why_absent
from dyn_probe.report.curves import fit_steps, label_ends
from dyn_probe.report.frames import Bins, Floats, numbers, step_bins
from dyn_probe.report.style import CASE_COLOURS, CHOSEN, MUTED, REJECTED, empty_figure, name_panel, new_figure, say

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

GROUPS = {
    "chosen": ("Chosen", CHOSEN),
    "rejected": ("Rejected", REJECTED),
    "others": ("Unrelated and shuffled", MUTED),
}
"""Group of response kinds → title and colour."""

RIVAL, REST = CASE_COLOURS[2], "#DDE2E8"


def mass_split(trace: Trace) -> Figure:
    """Shows: the probability at a position, averaged over the positions of the probe responses, in three parts
    that add up to 1: the target token, the most probable other token (its rival), and all remaining tokens.
    One panel each for chosen, rejected, and the unrelated and shuffled responses.

    How to read: healthy training widens the target's band in chosen. Where the rival's band widens in every panel
    while the target and the rest shrink, probability mass is being squeezed onto what the model would say anyway.

    Needs: probe responses (--mass-every).
    """
    lack = why_absent(trace, "mass.missing_mass", "mass.rival_mass")
    if lack:
        return empty_figure("Split of the mass", lack)
    figure, axes = new_figure(3, height=3.1)
    bins = step_bins(trace.mass)
    for ax, (group, (title, colour)) in zip(axes, GROUPS.items(), strict=True):
        name_panel(ax, title, "share of probability" if group == "chosen" else "")
        parts = _parts(trace.mass, bins, group)
        if np.isfinite(parts).any():
            _stack(ax, bins, parts, colour)
        else:
            say(ax, "no such probe response")
    return figure


def group_of(kinds: pd.Series) -> np.ndarray:
    """The group of each row's kind; a kind outside the table is its own group."""
    return np.array([KINDS[kind].group if kind in KINDS else str(kind) for kind in kinds], dtype=object)


def _parts(frame: pd.DataFrame, bins: Bins, group: str) -> Floats:
    """Mean share of target, rival and rest: [3, bins], NaN where a bin has none."""
    mine = group_of(frame["kind"]) == group
    target = bins.means(np.where(mine, 1 - numbers(frame, "missing_mass"), np.nan))
    rival = bins.means(np.where(mine, numbers(frame, "rival_mass"), np.nan))
    return np.array([target, rival, 1 - target - rival])


def _stack(ax: Axes, bins: Bins, parts: Floats, colour: str) -> None:
    kept = np.isfinite(parts).all(0)
    x, shares = bins.centre[kept], parts[:, kept]
    if len(x) == 1:
        x, shares = np.array([x[0] - 0.5, x[0] + 0.5]), np.repeat(shares, 2, 1)
    ax.stackplot(x, shares, colors=[colour, RIVAL, REST], alpha=0.85, linewidth=0)
    fit_steps(ax, bins)
    ax.set_ylim(0, 1)
    ax.grid(visible=False)
    edges = np.cumsum(np.concatenate([[0.0], shares[:, -1]]))
    names = zip(("target", "rival", "rest"), (colour, RIVAL, MUTED), strict=True)
    label_ends(
        ax,
        [
            ((low + high) / 2, f"{name} {high - low:.2f}", shade)
            for (name, shade), low, high in zip(names, edges[:-1], edges[1:], strict=True)
        ],
    )
