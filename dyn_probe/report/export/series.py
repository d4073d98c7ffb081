"""A run as curves for dashboards: one number per step and quantity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report.basis import BASES, basis_of, completed
from dyn_probe.report.frames import Bins, Floats, finite, numbers
from dyn_probe.report.overview import measures
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.push_parts import PARTS, of_side, ratio
from dyn_probe.trace.schema import TABLES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

COUNTED = ("step", "rank")
"""Columns of `steps` that are no quantity."""


@dataclass(frozen=True)
class Series:
    """One quantity: a name with its group before the slash, unit, meaning, and a value at each step that has one."""

    name: str
    unit: str
    meaning: str
    steps: Floats
    values: Floats


def all_series(trace: Trace) -> list[Series]:
    """Every quantity of the run that was recorded at some step.

    Medians over the step's rows of what the summary shows, case shares on the run's basis, mean pushes with their
    balance, probe responses by kind, and the table `steps` as the mean over its processes.
    """
    found = (*_pairs(trace), *_pushes(trace), *_mass(trace), *_steps(trace))
    return [one for one in found if len(one.steps)]


def _by_step(frame: pd.DataFrame) -> Bins:
    """One bin for each recorded step."""
    position, steps = pd.factorize(numbers(frame, "step"), sort=True)
    steps = np.asarray(steps, np.float64)
    return Bins(np.asarray(position, np.int64), steps, steps, steps)


def _series(
    name: str, unit: str, meaning: str, bins: Bins, values: Floats, summary: Callable[[Floats], float]
) -> Series:
    """The summary of each step's finite values, at the steps that have any."""
    found = [(step, summary(part)) for step, part in zip(bins.centre, bins.slices(values), strict=True) if len(part)]
    steps, summaries = np.array(found, np.float64).reshape(-1, 2).T
    return Series(name, unit, meaning, steps, summaries)


def _mean(values: Floats) -> float:
    return float(values.mean())


def _pairs(trace: Trace) -> Iterator[Series]:
    pairs = completed(trace)
    if pairs.empty:
        return
    bins, basis = _by_step(pairs), basis_of(pairs)
    for one in measures(pairs, basis):
        name = f"cases_{BASES[basis].name}/{one.key}" if one.key.startswith("case_") else f"pairs/{one.key}"
        yield _series(name, one.unit, f"{one.name}: {one.formula}", bins, one.values(pairs), one.summary)


def _pushes(trace: Trace) -> Iterator[Series]:
    for side in SIDES:
        rows = of_side(trace, side)
        bins = _by_step(rows)
        for part, words in {**PARTS, "total": "all parts together"}.items():
            meaning = f"mean push on {side} by {words}" if part != "total" else f"mean push on {side}, {words}"
            yield _series(f"pushes_{side}/{part}", "nats/sequence", meaning, bins, numbers(rows, part), _mean)
    rows = of_side(trace, "chosen").dropna(subset=["all_chosen", "all_rejected"])
    bins = _by_step(rows)
    sums = np.array([bins.sums(numbers(rows, f"all_{side}")) for side in SIDES])
    balance = ratio(sums.T)
    known = np.isfinite(balance)
    meaning = "−Σ all_rejected / Σ all_chosen − 1 on chosen: above 0 rejected pushes outweigh chosen pushes"
    yield Series("pushes_chosen/balance", "1", meaning, bins.centre[known], balance[known])


def _mass(trace: Trace) -> Iterator[Series]:
    for kind, rows in trace.mass.groupby("kind"):
        name, meaning = f"mass/{kind}", f"mean log-prob of the probe responses of kind {kind}"
        yield _series(name, "nats/token", meaning, _by_step(rows), numbers(rows, "logp_token"), _mean)


def _steps(trace: Trace) -> Iterator[Series]:
    bins = _by_step(trace.steps)
    for column in TABLES["steps"].columns:
        values = numbers(trace.steps, column.name)
        if column.name not in COUNTED and len(finite(values)):
            yield _series(f"steps/{column.name}", column.unit, column.meaning, bins, values, _mean)
