"""What a unit of pull moved in a recorded run: kernels from the table `pushes`, over positions along the run's path.

Letters: side s ∈ {w, l} is the response that moves, q ∈ {w, l} the responses whose pulls move it. ``P`` positions along
the path, ``R`` resamples of the pairs (the first is the run as it is).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report.changes import start_rows
from dyn_probe.report.frames import Floats, finite, numbers
from dyn_probe.report.push_parts import kept_apart, of_side
from dyn_probe.report.replay.pull_forms import PairState

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

POSITIONS = 40
"""Most positions along the path: longer runs are walked in strides of several steps."""
RESAMPLES = 20
MOST_PAIRS = 100
"""Pairs whose pulls are averaged; of more, as many are drawn."""
LETTERS = {"chosen": "w", "rejected": "l"}
MOMENTUM = 0.9
"""Decay of the gradients' momentum in the path's pulls: that of AdamW and Adam unless a run changes it."""


@dataclass(frozen=True)
class Kernels:
    """A run as its pushes describe it; arrays [R, P] unless said otherwise.

    Args:
        steps: optimizer steps of the run; `stride`: steps from one position to the next.
        others: (s, q) → push on side s by all q gradients of other pairs, of this step and through the momentum, nats
            a step. ``own``: by the pair's own, in this step alone. ``rest``: s → what is neither (decay, rounding).
        pull: q → mean pull as recorded; ``norm``: q → its mean 1/‖g‖, the inverse (nan where not recorded).
        certain: s → mean of 1 − e^(log-prob per token): how far the responses are from certain.
        state: the pairs at the start of the run, [pairs].
        picks: how often each of these pairs is in a resample, [R, pairs], each row adding up to 1.
    """

    steps: int
    stride: float
    others: dict[tuple[str, str], Floats]
    own: dict[tuple[str, str], Floats]
    rest: dict[str, Floats]
    pull: dict[str, Floats]
    norm: dict[str, Floats]
    certain: dict[str, Floats]
    state: PairState
    picks: Floats


def kernels(trace: Trace, seed: int = 0) -> Kernels | None:
    """The run's kernels; None where pushes of all chosen and all rejected were not recorded, where a pull is not above
    0 on average somewhere (what a unit of it moves is then not known), or with fewer than two recorded steps."""
    if not kept_apart(trace):
        return None
    steps = numbers(trace.pairs, "step")
    total = int(max(steps.max(), numbers(trace.steps, "step").max(initial=0)) + 1 - steps.min())
    grid = _Grid(trace.pairs, total, seed)
    if total < 2 or _steps_apart(trace) < 2:
        return None
    rows = {side: of_side(trace, side) for side in LETTERS}
    others, own, rest = {}, {}, {}
    for side, s in LETTERS.items():
        table = rows[side]
        for source, q in LETTERS.items():
            mine = numbers(table, f"own_{source}")
            others[s, q] = grid.mean(table, numbers(table, f"all_{source}") - mine)
            own[s, q] = grid.mean(table, mine)
        rest[s] = grid.mean(table, numbers(table, "decay") + numbers(table, "rounding"))
    pairs = trace.pairs
    pull = {q: grid.mean(pairs, numbers(pairs, f"pull_{side}")) for side, q in LETTERS.items()}
    found = [*others.values(), *own.values(), *pull.values()]
    if not np.isfinite(np.array(found)).all() or min(float(value.min()) for value in pull.values()) <= 0:
        return None
    return Kernels(
        total, total / grid.count, others, own, rest, pull,
        {q: grid.mean(pairs, _inverse(numbers(pairs, f"grad_norm_{side}"))) for side, q in LETTERS.items()},
        {s: grid.mean(pairs, _uncertain(pairs, side)) for side, s in LETTERS.items()},
        grid.state(pairs), grid.picks,
    )  # fmt: skip


def lacks(trace: Trace) -> str:
    """What a run without kernels would have needed, in words."""
    if not kept_apart(trace):
        return (
            "this needs the pushes of all chosen and all rejected responses: record once more with --split-momentum "
            "and --metric-every N above 0"
        )
    if _steps_apart(trace) < 2:
        return "this needs two steps that were taken apart: record a longer run, or with --metric-every 1"
    if not all(len(finite(numbers(trace.pairs, f"pull_{side}"))) for side in LETTERS):
        return "this needs the pulls of the objective, which were not recorded"
    return (
        "this needs pulls that stay above 0, and in this run, or in a resample of its pairs, the mean pull on a side "
        "is 0 or less at some time"
    )


def _steps_apart(trace: Trace) -> int:
    """How many steps were taken apart."""
    return len(np.unique(numbers(of_side(trace, "chosen"), "step")))


def _inverse(values: Floats) -> Floats:
    return np.divide(1.0, values, out=np.full(len(values), np.nan), where=values > 0)


def _uncertain(pairs: pd.DataFrame, side: str) -> Floats:
    """1 − e^(log-prob per token) of each row."""
    return np.asarray(-np.expm1(numbers(pairs, f"logp_{side}") / numbers(pairs, f"len_{side}")))


class _Grid:
    """Positions along the path, and the resamples of the pairs: means of rows over both."""

    def __init__(self, pairs: pd.DataFrame, total: int, seed: int) -> None:
        self.count = min(total, POSITIONS)
        self.first, self.total = float(numbers(pairs, "step").min()), total
        self.start = start_rows(pairs).replace([np.inf, -np.inf], np.nan).dropna()
        ids, draw = self.start.index, np.random.default_rng(seed)
        if len(ids) > MOST_PAIRS:
            ids = ids[np.sort(draw.choice(len(ids), MOST_PAIRS, replace=False))]
        self.ids = ids
        self.start = self.start.loc[ids]
        every = pd.Index(pairs["pair_id"].dropna().unique())
        drawn = draw.integers(0, max(1, len(every)), (RESAMPLES, len(every)))
        counts = np.array([np.bincount(row, minlength=len(every)) for row in drawn], np.float64)
        self.every, self.weights = every, np.vstack([np.ones(len(every)), counts.reshape(RESAMPLES, len(every))])
        own = self.weights[:, every.get_indexer(ids)]
        own[own.sum(1) == 0] = 1.0
        self.picks = own / own.sum(1, keepdims=True)

    def mean(self, rows: pd.DataFrame, values: Floats) -> Floats:
        """Weighted mean of the rows at every position [R, P]; positions without rows lie between their neighbours."""
        place = np.clip((numbers(rows, "step") - self.first) / self.total * self.count, 0, self.count - 1).astype(int)
        whose = self.every.get_indexer(rows["pair_id"])
        kept = np.isfinite(values) & (whose >= 0)
        place, whose, values = place[kept], whose[kept], values[kept]
        found = np.full((len(self.weights), self.count), np.nan)
        for number, weight in enumerate(self.weights):
            w = weight[whose]
            below = np.bincount(place, w, self.count)
            above = np.bincount(place, w * values, self.count)
            known = np.flatnonzero(below > 0)
            if len(known):
                found[number] = np.interp(np.arange(self.count), known, above[known] / below[known])
        return found

    def state(self, pairs: pd.DataFrame) -> PairState:
        """The pairs at the start, against their reference where there is one, else against that start."""
        start = {name: self.start[name].to_numpy(np.float64) for name in self.start}
        known = pairs.drop_duplicates("pair_id").set_index("pair_id").reindex(self.ids)
        reference = {side: numbers(known, f"ref_logp_{side}") for side in LETTERS}
        r_w, r_l = (np.where(np.isfinite(r), r, start[f"logp_{side}"]) for side, r in reference.items())
        return PairState(
            start["logp_chosen"], start["logp_rejected"], r_w, r_l, start["len_chosen"], start["len_rejected"]
        )
