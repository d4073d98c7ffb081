"""Entanglement by layer: cosine over depth and time, and each layer's share of the inner product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dyn_probe.report.frames import Bins, Floats, numbers, step_bins
from dyn_probe.report.needs import why_absent
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
    """Shows: left, the cosine of the chosen and rejected gradient within each layer (inner products of all
    pairs of the bin over the products of their norms), depth against steps; right, each layer's share of
    the whole ⟨g_w,g_l⟩, summed over the run.

    How to read: red layers push both responses the same way, blue ones tell them apart. A layer matters as
    much as its share on the right: inner products add up over layers, cosines do not. A head that is tied
    to the embedding counts as embedding.

    Needs: per-layer gradients.
    """
    lack = why_absent(trace, "layers.grad_inner")
    if lack:
        return empty_figure("Entanglement by layer", lack)
    shares = inner_shares(trace.layers)
    names = [str(name) for name in shares.index]
    figure, (left, right) = new_figure(2, height=max(2.6, 1.2 + 0.21 * len(names)), ratios=(2.2, 1))
    name_panel(left, "Cosine by layer")
    image = _heat(left, trace.layers, names)
    bar = figure.colorbar(image, ax=left, pad=0.015, fraction=0.05)
    bar.set_label("cosine", fontsize=LABEL, color=MUTED)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    bar.ax.tick_params(labelsize=TICK, labelcolor=MUTED, length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]
    name_panel(right, "Share of the inner product", x=r"share of $\sum \langle g_w, g_l\rangle$")
    _bars(right, shares)
    return figure


def layer_codes(frame: pd.DataFrame) -> tuple[NDArray[np.int64], list[str]]:
    """(each row's place in the list [rows], layer names from input to output)."""
    codes, names = pd.factorize(frame["layer"])
    depth = pd.Series(numbers(frame, "depth")).groupby(codes).min().reindex(range(len(names)))
    order = np.argsort(depth.to_numpy(), kind="stable")
    return np.argsort(order)[codes], [str(names[place]) for place in order]


def inner_shares(frame: pd.DataFrame) -> pd.Series:
    """Each layer's Σ⟨g_w,g_l⟩ over the total of all layers, input to output; shares add up to 1."""
    codes, names = layer_codes(frame)
    sums = np.bincount(codes, np.nan_to_num(numbers(frame, "grad_inner")), len(names))
    return pd.Series(sums / sums.sum(), index=names)


def layer_cosines(frame: pd.DataFrame, bins: Bins) -> Floats:
    """Σ⟨g_w,g_l⟩ / Σ‖g_w‖‖g_l‖ of each layer in each bin: [layers, bins], NaN where a layer has no rows."""
    codes, names = layer_codes(frame)
    cell, size = codes * len(bins) + bins.index, len(names) * len(bins)
    inner = numbers(frame, "grad_inner")
    product = numbers(frame, "grad_norm_chosen") * numbers(frame, "grad_norm_rejected")
    top, bottom = (np.bincount(cell, np.nan_to_num(part), size) for part in (inner, product))
    cosine = np.divide(top, bottom, out=np.full(size, np.nan), where=bottom > 0)
    return cosine.reshape(len(names), len(bins))


def _heat(ax: Axes, frame: pd.DataFrame, names: list[str]) -> QuadMesh:
    bins = step_bins(frame, rows=16 * len(names))
    edges = np.append(bins.low - 0.5, bins.high[-1] + 0.5)
    rows = np.arange(len(names) + 1) - 0.5
    cosine = layer_cosines(frame, bins)
    image = ax.pcolormesh(edges, rows, cosine, cmap=DIVERGING, vmin=-1, vmax=1, rasterized=True)
    ax.grid(visible=False)
    ax.set_ylabel("layer, from input (top) to output", fontsize=LABEL, color=MUTED)
    _layer_ticks(ax, names)
    return image


def _layer_ticks(ax: Axes, names: list[str]) -> None:
    every = max(1, int(np.ceil(len(names) / 24)))
    places = sorted({*range(0, len(names), every), 0, len(names) - 1})
    ax.set_yticks(places)
    ax.set_yticklabels([short(names[place]) for place in places], parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)


def _bars(ax: Axes, shares: pd.Series) -> None:
    values = shares.to_numpy(dtype=float)
    ax.barh(np.arange(len(values)), values, color=NEUTRAL, height=0.72)
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x", color="#E6E9ED")
    ax.axvline(0, color="#B8C0CA", linewidth=0.8)
    _layer_ticks(ax, [str(name) for name in shares.index])
