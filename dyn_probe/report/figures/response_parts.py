"""Which part of a response moved: before, at and after the first difference between the two responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dyn_probe.report.availability import why_absent
from dyn_probe.report.curves import Curve, draw_bands
from dyn_probe.report.figures.token_parts import COLOURS
from dyn_probe.report.frames import Floats, numbers, step_bins, tenths
from dyn_probe.report.pair_columns import SIDES, first_rows
from dyn_probe.report.style import empty_figure, name_panel, new_figure, rule
from dyn_probe.token_analysis import REGIONS

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

TITLE = "Which part of a response moved"
RECUR = 0.5
"""Share of the rows that must have an earlier row of their pair, so that changes are those of the same pairs."""


def response_parts(trace: Trace) -> Figure:
    """Shows: the change of the log-probability since the start, in three parts that add up to the whole: from response
    tokens before the first token in which the two responses differ, from that token, and from the tokens after it; one
    panel each for chosen and rejected. Line: median; band: interquartile range. Under the panels stands what is
    compared: each pair with its own first recorded step or, where few pairs recur, all rows with the mean of the first
    tenth of the steps.

    How to read: training on preferences is meant to move the token at the difference, up in chosen and down in
    rejected. Tokens before it are the same on both sides and get no gradient from the pair if only logits are trained;
    tokens after it are where both responses fall together (Theorem 3 of Yuan et al. 2024).

    Needs: pairs recorded with their tokens.
    """
    needs = [f"pairs.logp_{side}_{part}" for side in SIDES for part in REGIONS]
    lack = why_absent(trace, *needs)
    if lack:
        return empty_figure(TITLE, lack)
    figure, axes = new_figure(2, height=3.2)
    bins, basis = step_bins(trace.pairs), ""
    for ax, side in zip(axes, SIDES, strict=True):
        curves = []
        for part in REGIONS:
            values, basis = part_change(trace.pairs, f"logp_{side}_{part}")
            curves.append(Curve(part, values, COLOURS[part]))
        name_panel(ax, side.capitalize(), "change (nats per sequence)", f"optimizer step\n{basis}")
        rule(ax, 0)
        draw_bands(ax, bins, curves)
    return figure


def part_change(pairs: pd.DataFrame, column: str) -> tuple[Floats, str]:
    """Change of a column since the start [rows], NaN where there is none, and what is compared; nats/sequence."""
    values, first = numbers(pairs, column), first_rows(pairs)
    own = np.where(first == np.arange(len(first)), np.nan, values - values[first])
    if np.isfinite(own).sum() >= RECUR * np.isfinite(values).sum():
        return own, "each pair since its first recorded step"
    parts = tenths(pairs)
    start = values if parts is None else values[parts.first]
    return values - np.nanmean(start), "different pairs, relative to the mean of the first tenth of the steps"
