"""Drawing token heat maps: tokens on both axes, colours centred on 0, legible for 5 tokens and for 200."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.image import AxesImage

from dyn_probe.report.style import DIVERGING, INK, LABEL, MUTED, TICK, name_panel, tidy
from dyn_probe.token_analysis import TokenHeat, first_difference, visible

LABELLED = 60
"""Most tokens that are named on an axis; of more, every second, third, … is."""
WRITTEN = 12
"""Most tokens for which the cosine is written into the cell."""
CELL = 0.26
"""Inches of a cell, down to what fits LARGEST."""
LARGEST = 8.2


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def tick_text(token: str, most: int = 14) -> str:
    """A token as a tick label: visible, with characters that the figures' font lacks written as U+XXXX."""
    drawn = "".join(c if ord(c) in _glyphs() else f"U+{ord(c):04X}" for c in visible(token, 200))
    return drawn if len(drawn) <= most else drawn[: most - 1] + "…"


def named_places(tokens: int, kept: int = LABELLED) -> list[int]:
    """Places of the tokens that are named: all, or every k-th."""
    return list(range(0, tokens, max(1, int(np.ceil(tokens / kept)))))


def heat_size(heats: Sequence[TokenHeat], largest: float = LARGEST) -> tuple[float, float]:
    """(width, height) in inches of a map of the largest of these."""
    rows = max(len(heat.tokens_chosen) for heat in heats)
    columns = max(len(heat.tokens_rejected) for heat in heats)
    cell = min(CELL + 0.24 * (max(rows, columns) <= WRITTEN), largest / max(rows, columns))
    return max(1.6, cell * columns), max(1.6, cell * rows)


def draw_heat(ax: Axes, heat: TokenHeat, small: bool = False) -> AxesImage:
    """The cosines of one heat map; a thin line where the responses first differ."""
    image = ax.imshow(
        heat.cosine, cmap=DIVERGING, vmin=-1, vmax=1, aspect="equal", interpolation="nearest", rasterized=True
    )
    ax.set_facecolor("#D9DDE3")  # where a cosine is undefined
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    kept = 12 if small else LABELLED
    masks = (None, None) if small or heat.masks is None else heat.masks
    sides = (ax.yaxis, heat.tokens_chosen, masks[0]), (ax.xaxis, heat.tokens_rejected, masks[1])
    for axis, tokens, mask in sides:
        places = named_places(len(tokens), kept)
        said = ["" if mask is None else f"  {mask[k]:.2f}" for k in places]
        names = [tick_text(tokens[k], 10 if small else 14) + text for k, text in zip(places, said, strict=True)]
        axis.set_ticks(places, names, parse_math=False)
    size = 5.5 if small else TICK if max(heat.cosine.shape) <= 30 else 6
    ax.tick_params(length=0, labelsize=size, labelcolor=MUTED if small else INK)
    ax.tick_params(axis="x", rotation=90)
    _mark_difference(ax, heat)
    if not small and max(heat.cosine.shape) <= WRITTEN:
        _write_numbers(ax, heat)
    return image


def _mark_difference(ax: Axes, heat: TokenHeat) -> None:
    m = first_difference(heat.tokens_chosen, heat.tokens_rejected)
    if m:
        ax.axhline(m - 0.5, color=INK, linewidth=0.6)
        ax.axvline(m - 0.5, color=INK, linewidth=0.6)


def _write_numbers(ax: Axes, heat: TokenHeat) -> None:
    for (i, j), value in np.ndenumerate(heat.cosine):
        colour = "white" if abs(value) > 0.6 else INK
        text = "–" if np.isnan(value) else f"{value:.2f}".replace("-0.", "−.").replace("0.", ".", 1)
        ax.text(j, i, text, ha="center", va="center", fontsize=6.5, color=colour)


def colour_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes]) -> None:
    """The colours from −1 to 1, named."""
    bar = figure.colorbar(image, ax=list(axes), pad=0.015, fraction=0.035, shrink=0.8)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    bar.set_label("cosine", fontsize=LABEL, color=MUTED)
    bar.ax.tick_params(labelsize=TICK, labelcolor=MUTED, length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]


def heat_figure(heat: TokenHeat, title: str = "") -> Figure:
    """One heat map: chosen tokens down, rejected tokens across."""
    width, height = heat_size([heat])
    figure = Figure(figsize=(width + 2.6, height + 1.8), layout="constrained", facecolor="white")
    ax = figure.subplots()
    tidy(ax)
    ax.set_title("", loc="left", parse_math=False)  # stays so: a regular expression may hold $
    name_panel(ax, title or f"pair {heat.pair_id}, step {heat.step}", y="chosen token", x="rejected token")
    colour_bar(figure, draw_heat(ax, heat), [ax])
    return figure


def heats_figure(heats: Sequence[TokenHeat], columns: int = 3) -> Figure:
    """Small multiples of one pair: a map per step, all on the same colours."""
    across = min(columns, len(heats))
    down = int(np.ceil(len(heats) / across))
    width, height = heat_size(heats, 2.3)
    figure = Figure(
        figsize=(across * (width + 0.9) + 0.9, down * (height + 1.2)), layout="constrained", facecolor="white"
    )
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax, heat in zip(axes, heats, strict=False):
        tidy(ax)
        name_panel(ax, f"step {heat.step}", x="")
        image = draw_heat(ax, heat, small=True)
    for ax in axes[len(heats) :]:
        ax.set_axis_off()
    colour_bar(figure, image, list(axes))
    return figure


def spread_steps(heats: Sequence[TokenHeat], most: int = 6) -> list[TokenHeat]:
    """At most ``most`` of them, evenly spread, first and last included."""
    places = np.unique(np.linspace(0, len(heats) - 1, min(most, len(heats))).round().astype(int))
    return [heats[place] for place in places]
