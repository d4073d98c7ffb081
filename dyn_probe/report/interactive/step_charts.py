"""The page's charts over steps as plain data: lines with their bands, binned like the figures of the same name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dyn_probe.report import pair_columns
from dyn_probe.report.figures.push_stack import TINY, measured
from dyn_probe.report.figures.story import since_start
from dyn_probe.report.frames import Bins, Floats, bands, finite, numbers, step_bins
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.push_parts import PARTS, of_side

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

Data = dict[str, Any]

MOST_BINS = 400
"""Most points of a line: more than a screen has pixels would show nothing more."""
MOVED = "Log-probability since the start of the run"


def step_charts(trace: Trace) -> list[Data]:
    """The charts that this trace has data for, each with the figure that it stands for (`place`)."""
    found = [moved(trace), *(pushes(trace, side) for side in SIDES), inner(trace), cosine(trace), conditions(trace)]
    return [chart for chart in found if chart["series"]]


def moved(trace: Trace) -> Data:
    """How far both sides have moved per token since the start of the run: the upper panel of the figure `story`."""
    bins = _bins(trace.pairs)
    series = [banded(side, bins, since_start(trace, side)) for side in SIDES]
    return chart("story", MOVED, "nats/token", bins, series)


def pushes(trace: Trace, side: str) -> Data:
    """The mean push of a step on one side, part by part, with their total and the measured change (nats/sequence)."""
    rows = of_side(trace, side)
    bins = _bins(rows)
    parts = {name: bins.means(numbers(rows, name)) for name in PARTS}
    sizes = {name: float(np.nanmax(np.abs(values), initial=0.0)) for name, values in parts.items()}
    largest = max(sizes.values())
    series = [line(PARTS[name], name, values) for name, values in parts.items() if sizes[name] > TINY * largest]
    if not series:
        return chart("story", "", "", bins, [])
    total = line("total", "total", bins.means(numbers(rows, "total")))
    realised = line("measured", side, bins.means(measured(trace, rows, side)), dashed=True)
    title = f"Pushes on {side} in its own steps"
    return {**chart("story", title, "nats a step", bins, [total, realised, *series]), "side": side}


def inner(trace: Trace) -> Data:
    """The inner product of the two gradients of a pair: the left panel of the figure `entanglement`."""
    bins = _bins(trace.pairs)
    return chart("entanglement", "Inner product of chosen and rejected gradients", "(nats/parameter unit)²", bins,
                 [banded("inner product", bins, numbers(trace.pairs, "grad_inner"), "total")])  # fmt: skip


def cosine(trace: Trace) -> Data:
    """Cosine of the two gradients of a pair: the middle panel of the figure `entanglement`."""
    bins = _bins(trace.pairs)
    return chart("entanglement", "Cosine of chosen and rejected gradients", "", bins,
                 [banded("cosine", bins, numbers(trace.pairs, "grad_cosine"), "total")])  # fmt: skip


def conditions(trace: Trace) -> Data:
    """What share of its own pull each side loses to the other: above 1 it moves the wrong way."""
    bins = _bins(trace.pairs)
    ratios = {"chosen": pair_columns.condition_chosen, "rejected": pair_columns.condition_rejected}
    series = [banded(side, bins, ratio(trace.pairs)) for side, ratio in ratios.items()]
    return chart("entanglement", "Conditions: share of its own pull that is undone", "", bins, series, level=1)


def chart(place: str, title: str, unit: str, bins: Bins, series: list[Data], level: float = 0) -> Data:
    """A chart with a dotted rule at `level`; lines without a single number are left out."""
    known = [one for one in series if any(value is not None for value in one["values"])]
    steps = {"x": digits(bins.centre), "low": digits(bins.low), "high": digits(bins.high)}
    return {"place": place, "title": title, "unit": unit, "level": level, **steps, "series": known}


def banded(label: str, bins: Bins, values: Floats, colour: str = "") -> Data:
    """A line through the medians of the bins, with its interquartile range as a band."""
    _, low, middle, high, _ = bands(bins, values).T
    edges = {"low": digits(low), "high": digits(high)} if len(finite(low)) else {}
    return {**line(label, colour or label, middle), **edges}


def line(label: str, colour: str, values: Floats, dashed: bool = False) -> Data:
    """One line; `colour` names a colour of the page."""
    return {"label": label, "colour": colour, "values": digits(values), "dashed": dashed}


def digits(values: Floats) -> list[float | None]:
    """Numbers with four digits; None where one is not finite."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]


def _bins(frame: Any) -> Bins:
    return step_bins(frame, limit=MOST_BINS)
