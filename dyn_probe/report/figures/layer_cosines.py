"""Entanglement by layer: cosine over depth and steps, and each layer's part of the mean cosine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from dyn_probe.report.availability import why_absent
from dyn_probe.report.by_layer import cosine_parts, layer_codes, layer_cosines
from dyn_probe.report.frames import last_tenth, step_bins
from dyn_probe.report.style import (
    DIVERGING,
    LABEL,
    MUTED,
    NEUTRAL,
    TICK,
    empty_figure,
    name_panel,
    new_figure,
    short,
)

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def layers(trace: Trace) -> Figure:
    """Shows: left, the cosine of the chosen and rejected gradient within each layer (mean over the pairs of a
    bin), depth against steps; right, each layer's part of the whole cosine at the end (last tenth of the
    steps): ⟨g_w,g_l⟩ of the layer over ‖g_w‖‖g_l‖ of the whole model, mean over pairs.

    How to read: red layers move both responses in the same direction, blue ones in opposite directions. The right
    panel shows how much each layer contributes: the parts add up to the mean cosine of the pairs. A head that is tied
    to the embedding counts as embedding.

    Needs: per-layer gradients.
    """
    lack = why_absent(trace, "layers.grad_inner")
    if lack:
        return empty_figure("Entanglement by layer", lack)
    parts = cosine_parts(last_tenth(trace.layers))
    names = layer_codes(trace.layers)[1]
    figure, (left, right) = new_figure(2, height=max(2.6, 1.2 + 0.21 * len(names)), ratios=(2.2, 1))
    name_panel(left, "Cosine by layer")
    image = _heat(left, trace.layers, names)
    bar = figure.colorbar(image, ax=left, pad=0.015, fraction=0.05)
    bar.set_label("cosine", fontsize=LABEL, color=MUTED)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    bar.ax.tick_params(labelsize=TICK, labelcolor=MUTED, length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]
    name_panel(right, "Part of the cosine", x="part of the mean cosine")
    _bars(right, parts.reindex(names))
    return figure


def _heat(ax: Axes, frame: pd.DataFrame, names: list[str]) -> QuadMesh:
    bins = step_bins(frame, rows=16 * len(names))
    edges = np.append(bins.low - 0.5, bins.high[-1] + 0.5)
    rows = np.arange(len(names) + 1) - 0.5
    cosine = layer_cosines(frame, bins)
    image = ax.pcolormesh(edges, rows, cosine, cmap=DIVERGING, vmin=-1, vmax=1, rasterized=True)
    ax.grid(visible=False)
    ax.set_ylabel("layer, from input (top) to output", fontsize=LABEL, color=MUTED)
    if len(bins) == 1:
        ax.set_xticks(bins.centre, [f"{bins.low[0]:.0f}"])
    _layer_ticks(ax, names)
    return image


def _layer_ticks(ax: Axes, names: list[str]) -> None:
    every = max(1, int(np.ceil(len(names) / 24)))
    places = sorted({*range(0, len(names), every), 0, len(names) - 1})
    ax.set_yticks(places)
    ax.set_yticklabels([short(names[place]) for place in places], parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)


def _bars(ax: Axes, parts: pd.Series) -> None:
    values = parts.to_numpy(dtype=float)
    ax.barh(np.arange(len(values)), values, color=NEUTRAL, height=0.72)
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x", color="#E6E9ED")
    ax.axvline(0, color="#B8C0CA", linewidth=0.8)
    _layer_ticks(ax, [str(name) for name in parts.index])
