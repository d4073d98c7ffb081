"""Figures of how the cost grows with tokens, pairs and width, measured beside the cost model's curve."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cost.expected import expected_ratio

COLOURS = {"recorded": "#33608c", "one pass": "#c8621b"}
LEGEND = {"recorded": "recorded, exact training", "one pass": "one pass"}
Kept = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One axis: which cells stand on it, where, and what the model says there.

    Args:
        takes: whether a cell (shape, trained, length, pairs) belongs here.
        place: its place on the axis.
    """

    title: str
    takes: Callable[[str, str, int, int], bool]
    place: Callable[[str, int, int], int]


def panels(kind: str) -> tuple[Panel, ...]:
    """Of one kind of device."""
    pairs, length, width_length = (4, 64, 64) if kind == "cpu" else (8, 512, 512)
    return (
        Panel(
            f"tokens of a row (GPT-2 small, {pairs} pairs)",
            lambda s, t, n, b: (s, t, b) == ("gpt2-small", "all", pairs),
            lambda _, n, b: n,
        ),
        Panel(
            f"pairs (GPT-2 small, {length} tokens)",
            lambda s, t, n, b: (s, t, n) == ("gpt2-small", "all", length),
            lambda _, n, b: b,
        ),
        Panel(
            f"width (Llama of 4 layers, {width_length} tokens)",
            lambda s, t, n, b: s.startswith("llama-") and s[6:].isdigit() and (t, n) == ("all", width_length),
            lambda s, n, b: int(s[6:]),
        ),
    )


def points(kept: Iterable[Kept], panel: Panel) -> list[tuple[int, str, int, Kept]]:
    """``(place, shape, length, kinds)`` of the cells of a panel, in order."""
    found = []
    for one in kept:
        shape, *rest = one["cell"].split(":")
        if shape in ("loops", "maps"):
            continue
        trained, length, pairs, _ = rest
        if panel.takes(shape, trained, int(length), int(pairs)):
            found.append((panel.place(shape, int(length), int(pairs)), shape, int(length), one["kinds"]))
    return sorted(found, key=lambda point: point[0])


def growth(kept: list[Kept], kind: str) -> Figure:
    """Shows: ratio of recorded to plain steps against tokens, pairs and width, median with the smallest and largest
    round, and dashed what the cost model expects of exact training (1 in one pass).

    How to read: a point above its curve costs more than its operations: launches, memory traffic, small uses.

    Needs: kept cells; a panel with less than two of them stays away.
    """
    drawn = [(panel, found) for panel in panels(kind) if len(found := points(kept, panel)) > 1]
    figure, axes = plt.subplots(1, max(1, len(drawn)), figsize=(4 * max(1, len(drawn)), 3.2), squeeze=False)
    for axis, (panel, found) in zip(axes[0], drawn, strict=False):
        _draw(axis, panel, found)
    if drawn:
        axes[0][0].set_ylabel("step time / plain")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="upper center", ncol=3, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    return figure


def _draw(axis: Axes, panel: Panel, found: list[tuple[int, str, int, Kept]]) -> None:
    for name, colour in COLOURS.items():
        there = [(place, kinds[name]) for place, _, _, kinds in found if "ratio" in kinds.get(name, {})]
        middles = [one["ratio"] for _, one in there]
        spread = [[m - one["least"] for m, (_, one) in zip(middles, there, strict=True)],
                  [one["most"] - m for m, (_, one) in zip(middles, there, strict=True)]]  # fmt: skip
        axis.errorbar([p for p, _ in there], middles, spread, fmt="o-", color=colour, capsize=3, label=LEGEND[name])
    model = [expected_ratio(shape, length) for _, shape, length, _ in found]
    axis.plot([place for place, *_ in found], model, "--", color=COLOURS["recorded"], label="cost model, exact")
    axis.axhline(1.0, ls="--", color=COLOURS["one pass"], lw=1)
    axis.set_xscale("log", base=2)
    axis.set_xticks([place for place, *_ in found], [str(place) for place, *_ in found])
    axis.minorticks_off()
    axis.set_xlabel(panel.title)


def save(figure: Figure, place: Path) -> None:
    """A small PNG."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    picture = Image.open(drawn).convert("RGB").quantize(64, method=Image.Quantize.FASTOCTREE)
    place.parent.mkdir(parents=True, exist_ok=True)
    picture.save(place, optimize=True)
    plt.close(figure)
