"""The model's next-token distribution at positions of a probe response, before and after training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dyn_probe.mass.distributions import PlaceChange, find_place, recorded_places
from dyn_probe.report.availability import why_absent
from dyn_probe.report.figures.mass_toy import AFTER, BEFORE
from dyn_probe.report.style import INK, MUTED, SIDE_COLOURS, empty_figure, name_panel, tidy
from dyn_probe.report.token_draw import tick_text

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

SHOWN = 7
"""Tokens that a panel names, beside the rest."""
STAR = "★"


def mass_distributions(trace: Trace) -> Figure:
    """Shows: the model's next-token distribution at the first, a middle and the last token of chosen (top) and rejected
    (bottom) of one probe prompt: probabilities of single tokens before (grey) and after training (purple), at the first
    and the last measurement. A star marks the most probable token of each; the target, which is the token that the
    response has there, is in colour; "all others" is the sum over the tokens that are not named.

    How to read: at one position, squeezing is a starred bar that grows while the target and all others shrink. In
    rejected the target is meant to shrink: see which token took the mass it lost. In chosen it should grow. Other
    prompts and positions are drawn by place_figure (see "Where the probability goes" in the docs).

    Needs: probe responses that are chosen or rejected (--mass-every).
    """
    lack = why_absent(trace, "distributions.probabilities")
    if lack:
        return empty_figure("Next-token distributions", lack)
    places = recorded_places(trace.distributions)
    return places_figure([one for one in places if one.prompt_id == places[0].prompt_id])


def place_figure(trace: Trace, prompt: str | int = 0, kind: str = "chosen", position: int | None = None) -> Figure:
    """The same for one prompt, kind and position of your choice.

    Args:
        prompt: id of the prompt, the beginning of one, or its number in the probe set.
        kind: chosen or rejected.
        position: token of the response, counted from 0; None is the first that is recorded.

    Raises:
        BadInput: no such position; the message names those that are recorded.
    """
    return places_figure([find_place(trace.distributions, prompt, kind, position)])


def places_figure(places: list[PlaceChange]) -> Figure:
    """A panel per place: a row per kind, a column per position."""
    kinds = list(dict.fromkeys(one.kind for one in places))
    across = max(sum(one.kind == kind for one in places) for kind in kinds)
    size = (max(4.8, 3.6 * across), 0.6 + 2.7 * len(kinds))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(len(kinds), across, squeeze=False)
    for row, kind in zip(axes, kinds, strict=True):
        mine = [one for one in places if one.kind == kind]
        for ax, place in zip(row, mine, strict=False):
            draw_place(ax, place)
        for ax in row[len(mine) :]:
            ax.set_axis_off()
    first, last = places[0].steps
    text = f"prompt {places[0].prompt_id[:8]}: grey at step {first}, purple at step {last}"
    figure.suptitle(text, fontsize=8.5, color=MUTED, x=0.01, ha="left")
    return figure


def draw_place(ax: Axes, place: PlaceChange) -> None:
    """Bars of the most probable tokens before and after, the target and all others."""
    tidy(ax)
    name_panel(ax, f"{place.kind}, token {place.position + 1}", x="probability")
    named = shown_tokens(place)
    names = [tick_text(place.tokens[k]) for k in named] + ["all others"]
    before = _with_rest(place.before, place.rest_before, named)
    after = _with_rest(place.after, place.rest_after, named)
    heights = np.arange(len(names))[::-1]
    ax.barh(heights + 0.2, np.nan_to_num(before), height=0.38, color=BEFORE, linewidth=0)
    ax.barh(heights - 0.2, after, height=0.38, color=AFTER, linewidth=0)
    _write(ax, place, named, heights, before, after)
    ax.set_yticks(heights, names, parse_math=False)
    for label, k in zip(ax.get_yticklabels(), [*named, None], strict=True):
        mark = k == place.target
        label.set(color=SIDE_COLOURS.get(place.kind, INK) if mark else INK, fontweight="bold" if mark else "normal")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlim(0, 1.42 * max(np.nan_to_num(before).max(), after.max(), 0.01))
    ax.set_xticks([tick for tick in ax.get_xticks() if tick <= 1])
    ax.grid(axis="y", visible=False)


def said(value: float) -> str:
    """A probability in three decimals."""
    return "not recorded" if np.isnan(value) else f"{value:.3f}" if value >= 0.001 else "<0.001"


def shown_tokens(place: PlaceChange, most: int = SHOWN) -> list[int]:
    """Places in ``tokens`` of what a panel names: the target, both argmaxes, then the most probable of either."""
    size = np.fmax(place.before, place.after)
    must = {place.target, place.top_after, *([] if place.top_before is None else [place.top_before])}
    order = [*must, *(k for k in np.argsort(-size, kind="stable").tolist() if k not in must)]
    return sorted(order[:most], key=lambda k: (-size[k], k))


def _with_rest(values: np.ndarray, rest: float, named: list[int]) -> np.ndarray:
    """Probabilities of the named tokens, and what all others have."""
    return np.append(values[named], rest + np.delete(values, named).sum())


def _write(
    ax: Axes, place: PlaceChange, named: list[int], heights: np.ndarray, before: np.ndarray, after: np.ndarray
) -> None:
    """Numbers behind the bars, and a star at the argmax of each."""
    for k, height, first, last in zip([*named, -1], heights, before, after, strict=True):
        for value, up, top in ((first, 0.2, place.top_before), (last, -0.2, place.top_after)):
            text = said(value) + (f" {STAR}" if k == top else "")
            ax.annotate(
                text, (float(np.nan_to_num(value)), height + up), xytext=(3, 0), textcoords="offset points",
                va="center", fontsize=6.5, color=INK if k == place.target else MUTED,
            )  # fmt: skip
