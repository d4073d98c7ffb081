"""Where the inner product comes from: before, at and after the first difference, and which token strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_probe.report.availability import why_absent
from dyn_probe.report.style import CASE_COLOURS, DIVERGING, INK, LABEL, NEUTRAL, empty_figure, name_panel, new_figure
from dyn_probe.report.token_draw import tick_text
from dyn_probe.token_analysis import REGIONS, TokenGroup, TokenHeat, recorded_heats, region_inner, token_groups

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

COLOURS = dict(zip(REGIONS, (NEUTRAL, CASE_COLOURS[1], CASE_COLOURS[3]), strict=True))
MOST_STEPS, MOST_GROUPS = 24, 14


def token_parts(trace: Trace) -> Figure:
    """Shows: left, ⟨g_w,g_l⟩ of the tracked pairs (mean over pairs), split by the position of the later of two tokens:
    before, at or after the first difference; right, the aligned token strings that contribute most to it over the run,
    each with its share and, as colour, its mean cosine.

    How to read: parts above 0 move the responses in the same direction, parts below 0 in opposite directions; they add
    up to the dot. A large part after the first difference means that what follows the decisive token causes the
    entanglement. Shares on the right are of the run's whole inner product; pairs of tokens that are not aligned are
    not listed.

    Needs: token heat maps (--tokens-every).
    """
    lack = why_absent(trace, "tokens.inner")
    if lack:
        return empty_figure("Where entanglement comes from", lack)
    heats = recorded_heats(trace.tokens)
    figure, (left, right) = new_figure(2, height=4.2, ratios=(1.25, 1))
    name_panel(left, "Part of the inner product", y=r"$\langle g_w, g_l\rangle$")
    _stack(left, heats)
    name_panel(right, "Token strings, whole run", x=r"share of $\sum \langle g_w, g_l\rangle$")
    _bars(right, leading_groups(heats))
    return figure


def mean_parts(heats: Sequence[TokenHeat]) -> dict[int, dict[str, float]]:
    """Step → mean over the pairs of each region's inner product."""
    steps = sorted({heat.step for heat in heats})
    places = np.unique(np.linspace(0, len(steps) - 1, min(MOST_STEPS, len(steps))).round().astype(int))
    found = {}
    for step in (steps[place] for place in places):
        parts = [region_inner(heat) for heat in heats if heat.step == step]
        found[step] = {name: float(np.mean([part[name] for part in parts])) for name in REGIONS}
    return found


def leading_groups(heats: Sequence[TokenHeat], most: int = MOST_GROUPS) -> list[TokenGroup]:
    """The groups with the largest shares, by size whatever their sign, in the order of their shares."""
    groups = [group for group in token_groups(heats) if np.isfinite(group.share)]
    kept = sorted(groups, key=lambda group: -abs(group.share))[:most]
    return sorted(kept, key=lambda group: -group.share)


def _stack(ax: Axes, heats: Sequence[TokenHeat]) -> None:
    """Stacked bars per step: positive parts up, negative parts down."""
    parts = mean_parts(heats)
    x = np.arange(len(parts))
    up, down = np.zeros(len(parts)), np.zeros(len(parts))
    for name in REGIONS:
        values = np.array([row[name] for row in parts.values()])
        base = np.where(values >= 0, up, down)
        ax.bar(x, values, 0.8, bottom=base, color=COLOURS[name], label=name)
        up, down = up + np.maximum(values, 0), down + np.minimum(values, 0)
    ax.plot(x, [sum(row.values()) for row in parts.values()], "o", color=INK, markersize=3.5, label="sum")
    ax.axhline(0, color="#B8C0CA", linewidth=0.8)
    every = max(1, len(parts) // 8)
    ax.set_xticks(x[::every], [str(step) for step in parts][::every])
    ax.legend(fontsize=LABEL - 1, frameon=False, labelcolor=INK, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.06))


def _bars(ax: Axes, groups: Sequence[TokenGroup]) -> None:
    from matplotlib import colormaps

    colours = colormaps[DIVERGING]([0.5 + group.cosine / 2 for group in groups])
    ax.barh(np.arange(len(groups)), [group.share for group in groups], color=colours, edgecolor=INK, linewidth=0.4)
    ax.set_yticks(range(len(groups)), [_name(group) for group in groups], parse_math=False)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.axvline(0, color="#B8C0CA", linewidth=0.8)


def _name(group: TokenGroup) -> str:
    names = [tick_text(name, 10) for name in (group.chosen, group.rejected)]
    return names[0] if group.chosen == group.rejected else f"{names[0]} / {names[1]}"
