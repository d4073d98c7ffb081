"""What a margin costs: the held-out margin at the same distance from the reference, for every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.frames import Floats, numbers

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

KL = ("kl_ref", "kl_ref_sampled")
"""Columns of the KL to the reference (nats/token), the exact one first."""
MARGIN = "eval_log_ratio_margin"


@dataclass(frozen=True)
class AtOneKL:
    """Held-out log-ratio margins (nats/sequence) of several runs where their KL first reaches `kl` (nats/token), the
    smallest of the runs' largest."""

    kl: float
    margins: dict[str, float]

    @property
    def cheapest(self) -> str:
        """The run with the largest margin there."""
        return max(self.margins, key=lambda label: self.margins[label])


def margin_points(trace: Trace) -> Floats:
    """``[evaluations, 2]`` KL to the reference (nats/token) and log-ratio margin (nats/sequence) of the held-out pairs,
    by step; the evaluation after the last step is in run.json."""
    rows = _evaluations(trace, f"eval_{kl_column(trace)}", MARGIN)[:, 1:]
    return rows[np.isfinite(rows).all(1)]


def kl_over_steps(trace: Trace) -> Floats:
    """``[evaluations, 2]`` steps taken, and the KL to the reference then (nats/token), of the held-out pairs."""
    rows = _evaluations(trace, f"eval_{kl_column(trace)}")
    return rows[np.isfinite(rows).all(1)]


def _evaluations(trace: Trace, *names: str) -> Floats:
    """``[steps + 1, 1 + names]`` steps taken and these columns, the last row after the last step."""
    steps = trace.steps.sort_values("step", kind="stable")
    taken = numbers(steps, "step")
    rows = np.stack([taken, *(numbers(steps, name) for name in names)], 1)
    after = taken.max() + 1 if len(taken) else np.nan
    end = [getattr(trace.about.held_out, name, None) for name in names]
    last = [after, *(np.nan if value is None else value for value in end)]
    return np.vstack([rows, np.array([last], dtype=np.float64)])


def kl_column(trace: Trace) -> str:
    """Which of the two kinds of KL the run has for its held-out pairs; the exact one where it has none."""
    known = [name for name in KL if np.isfinite(numbers(trace.steps, f"eval_{name}")).any()]
    return known[0] if known else KL[0]


def at_one_kl(traces: Mapping[str, Trace]) -> AtOneKL | None:
    """The margins of all runs at one KL, on a straight line between two evaluations; None where a run has no two
    evaluations, or did not leave the reference."""
    lines = {label: margin_points(trace) for label, trace in traces.items()}
    if len(lines) < 2 or any(len(line) < 2 for line in lines.values()):
        return None
    reached = min(float(line[:, 0].max()) for line in lines.values())
    if reached <= 0:
        return None
    return AtOneKL(reached, {label: margin_at(line, reached) for label, line in lines.items()})


def margin_at(line: Floats, kl: float) -> float:
    """The margin where a line of ``margin_points`` first reaches ``kl``, which it does."""
    after = int(np.argmax(line[:, 0] >= kl))
    if after == 0:
        return float(line[0, 1])
    (low, before), (high, margin) = line[after - 1], line[after]
    return float(before + (margin - before) * (kl - low) / (high - low))
