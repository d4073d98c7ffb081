"""Which of several runs is healthier: which did less harm, and not merely because it trained less.

The harm of a run is what preference training should not do to a pair: a fall of chosen and a rise of rejected, in
nats/token. A run is healthier than another where its harm is smaller by more than chance between pairs and by WORTH;
where its margin grew; and where its harm per growth of the margin is no larger. The last is what a lower learning
rate or an earlier stop cannot buy. Held-out pairs may speak against it; then it cannot be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.frames import Floats, finite
from dyn_probe.report.side_by_side.held_out_pairs import held_out_change
from dyn_probe.report.side_by_side.quantities import Moves, moves

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

WORTH = 0.01
"""A difference in harm that counts, in nats/token: one per cent of a token's probability. A convention."""
ERRORS = 2.0
"""A difference within this many standard errors is no difference."""


@dataclass(frozen=True)
class Between:
    """Two runs held against each other.

    Args:
        first, second: their labels.
        winner: the label of the healthier one; empty where it cannot be told.
        why: what decides, or what stands in the way, in words: `less-harm`, `alike`, `no-margin`, `less-training`,
            `held-out`.
        difference: harm of `second` less that of `first`, mean (nats/token); `error`: its standard error over pairs.
    """

    first: str
    second: str
    winner: str
    why: str
    difference: float
    error: float


def harm(found: Moves, label: str) -> Floats:
    """Fall of chosen plus rise of rejected of each pair; nats/token [pairs]."""
    fall, rise = -found.side(label, "chosen"), found.side(label, "rejected")
    return np.asarray(np.maximum(fall, 0) + np.maximum(rise, 0), dtype=np.float64)


def price(found: Moves, label: str) -> float:
    """Harm per growth of the margin: ratio of the means over pairs; infinite where the margin did not grow."""
    grown = float(finite(found.margin(label)).mean())
    return float(finite(harm(found, label)).mean()) / grown if grown > 0 else float("inf")


def judged(traces: Mapping[str, Trace]) -> list[Between]:
    """Every two of the runs held against each other; empty where no change is known for all of them."""
    found = moves(traces)
    return [] if found is None else [between(found, traces, a, b) for a, b in combinations(traces, 2)]


def healthiest(found: list[Between], labels: list[str]) -> str:
    """The run that is healthier than every other one; empty where none is."""
    wins = {label: sum(one.winner == label for one in found) for label in labels}
    return next((label for label, number in wins.items() if number == len(labels) - 1), "")


def between(found: Moves, traces: Mapping[str, Trace], first: str, second: str) -> Between:
    """Which of two runs is healthier, and what decides."""
    difference, error = gap(harm(found, first), harm(found, second), found.paired)
    winner, other = (first, second) if difference > 0 else (second, first)
    if not np.isfinite(error) or not abs(difference) > max(WORTH, ERRORS * error):
        why = "alike"
    elif not finite(found.margin(winner)).mean() > 0:
        why = "no-margin"
    elif price(found, winner) > price(found, other):
        why = "less-training"
    elif not _held_out_agrees(found, traces, winner, other):
        why = "held-out"
    else:
        return Between(first, second, winner, "less-harm", difference, error)
    return Between(first, second, "", why, difference, error)


def gap(first: Floats, second: Floats, paired: bool) -> tuple[float, float]:
    """Mean of `second` less mean of `first`, and its standard error: of the pairs' differences where they are the same
    pairs, else of two independent means; NaN with a single value."""
    if paired:
        apart = finite(second - first)
        return float(apart.mean()), _error(apart)
    a, b = finite(first), finite(second)
    return float(b.mean() - a.mean()), float(np.hypot(_error(a), _error(b)))


def _error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _held_out_agrees(found: Moves, traces: Mapping[str, Trace], winner: str, other: str) -> bool:
    """Whether chosen on held-out pairs does not end lower in the winner, by WORTH a token, where both know it."""
    ends = [held_out_change(traces[label]) for label in (winner, other)]
    if ends[0] is None or ends[1] is None:
        return True
    length = float(np.median(finite(traces[winner].pairs["len_chosen"].to_numpy(dtype=np.float64))))
    return ends[0].chosen - ends[1].chosen >= -WORTH * length
