"""Squeezing in its smallest form, computed without a model: softmax regression and one negative gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_probe.mass.toy import ToyCase, by_sharpness, by_target_mass, cases
from dyn_probe.report.style import CASE_COLOURS, INK, LABEL, REJECTED, name_panel, rule, tidy

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

TITLES = {"flat": "y⁻ in a flat distribution", "peak": "y⁻ at the peak", "valley": "y⁻ in a valley"}
BEFORE, AFTER, STEPS = "#C3CBD4", CASE_COLOURS[2], 3


def squeezing_toy(_: Trace | None = None) -> Figure:
    """Shows: softmax regression with 50 classes under a negative gradient on one class, y⁻. Top: the distribution
    before (grey) and after (purple) three steps, for a flat start, for y⁻ at the peak and for y⁻ in a valley.
    Bottom: mean fall of the bystanders, the classes that are neither y⁻ nor the most probable other class y★,
    after one step: left against how peaked the distribution is, right against how probable y⁻ is.

    How to read: bystanders that fall (above 0) are squeezed. y⁻ falls and y★ rises in all three cases. From a flat
    start all classes share the freed mass; from a peaked one y★ takes it, and takes more from the bystanders. The
    effect grows with the peak and with the improbability of y⁻, and preference training meets both on responses that
    the model would not give.

    Needs: nothing; the numbers are computed, not recorded.
    """
    figure = Figure(figsize=(9.6, 5.4), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 6, height_ratios=(1.15, 1))
    for column, case in enumerate(cases(STEPS)):
        ax = figure.add_subplot(grid[0, 2 * column : 2 * column + 2])
        _distribution(ax, case, "probability" if column == 0 else "")
    left = figure.add_subplot(grid[1, :3])
    right = figure.add_subplot(grid[1, 3:], sharey=left)
    _sweep(left, by_sharpness(), "The more peaked, the stronger", "sharpness (0 is flat)")
    _sweep(right, by_target_mass(), "The smaller π(y⁻), the stronger", "π(y⁻) before the step")
    right.set_xscale("log")
    right.invert_xaxis()
    return figure


def _distribution(ax: Axes, case: ToyCase, unit: str) -> None:
    tidy(ax)
    name_panel(ax, TITLES[case.name], unit, x="class")
    classes = np.arange(len(case.before))
    ax.bar(classes, case.before, width=1.0, color=BEFORE, linewidth=0)
    ax.step(classes, case.after, where="mid", color=AFTER, linewidth=1.6)
    ax.set_ylim(0, 1.3 * max(case.before.max(), case.after.max()))
    ax.set_xlim(-1, len(classes))
    aside = -24 if case.negative > 10 else 16
    _mark(ax, case.negative, float(case.before[case.negative]), "y⁻", REJECTED, aside)
    if case.name != "flat":
        _mark(ax, case.top, float(case.after[case.top]), "y★", INK, 22)


def _mark(ax: Axes, place: int, height: float, text: str, colour: str, aside: int) -> None:
    ax.annotate(
        text, (place, height), xytext=(aside, 10), textcoords="offset points", ha="center", fontsize=LABEL,
        color=colour, fontweight="bold",
        arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 0.9, "shrinkB": 1},
    )  # fmt: skip


def _sweep(ax: Axes, sweep: tuple[ToyCase, ...], title: str, x: str) -> None:
    tidy(ax)
    name_panel(ax, title, "fall of the bystanders (nats)", x=x)
    rule(ax, 0)
    places = [float(case.name) for case in sweep]
    ax.plot(places, [case.squeeze for case in sweep], color=AFTER, linewidth=1.7, marker="o", markersize=5)
