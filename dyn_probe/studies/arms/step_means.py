"""Means over the pairs of recorded steps, at the start, at the end and step by step; cosines of aligned tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dyn_probe.report.frames import Floats, numbers
from dyn_probe.studies.claims import Estimate
from dyn_probe.token_analysis import counterparts, first_difference, recorded_heats
from dyn_probe.trace.reader import Trace

LATE, EARLY = 0.25, 0.125
"""Shares of the recorded steps, the last and the first, over which "at the end" and "at the start" are means."""


def mean_by_step(trace: Trace, value: Callable[[Trace], Floats]) -> tuple[Floats, Floats]:
    """(steps ``[S]``, mean over the pairs of each step ``[S]``)."""
    at, values = numbers(trace.pairs, "step"), value(trace)
    steps = np.unique(at)
    return steps, np.array([float(np.mean(values[at == step])) for step in steps])


def by_step(traces: Sequence[Trace], value: Callable[[Trace], Floats]) -> tuple[Floats, Floats]:
    """(steps ``[S]``, mean over the pairs of a step and then its seeds ``[seeds, S]``)."""
    found = [mean_by_step(trace, value) for trace in traces]
    return found[0][0], np.array([means for _, means in found])


def change(side: str) -> Callable[[Trace], Floats]:
    """Change of log π since the reference, per row (nats/sequence)."""
    return lambda trace: numbers(trace.pairs, f"logp_{side}") - numbers(trace.pairs, f"ref_logp_{side}")


def cosine(trace: Trace) -> Floats:
    """Cosine of the chosen and rejected gradient, per row."""
    return numbers(trace.pairs, "grad_cosine")


def at_end(traces: Sequence[Trace], value: Callable[[Trace], Floats]) -> list[Estimate]:
    """Each seed's mean over the pairs of the last steps."""
    return [_mean_of_steps(trace, value, last=True) for trace in traces]


def at_start(traces: Sequence[Trace], value: Callable[[Trace], Floats]) -> list[Estimate]:
    """Each seed's mean over the pairs of the first steps, before training has moved much."""
    return [_mean_of_steps(trace, value, last=False) for trace in traces]


def _mean_of_steps(trace: Trace, value: Callable[[Trace], Floats], last: bool) -> Estimate:
    at = numbers(trace.pairs, "step")
    steps = np.unique(at)
    kept = steps[-max(1, round(LATE * len(steps))) :] if last else steps[: max(1, round(EARLY * len(steps)))]
    return Estimate.of(value(trace)[np.isin(at, kept)])


def token_cosines(traces: Sequence[Trace], same: bool) -> list[Estimate]:
    """Each seed's mean cosine, over the tracked pairs at the first record, of aligned tokens that differ, or that are
    the same and come after the first difference (those before it have the same gradient, hence a cosine of 1)."""
    return [_aligned_cosine(trace, same) for trace in traces]


def _aligned_cosine(trace: Trace, same: bool) -> Estimate:
    heats = [heat for heat in recorded_heats(trace.tokens) if heat.step == int(trace.tokens["step"].min())]
    found = [
        (heat.pair_id, heat.cosine[one.i, one.j])
        for heat in heats
        for one in counterparts(heat)
        if one.same == same
        and one.i >= first_difference(heat.tokens_chosen, heat.tokens_rejected)
        and np.isfinite(one.cosine)
    ]
    if not found:
        return Estimate(*[float("nan")] * 4)
    pairs, cosines = zip(*found, strict=True)
    return Estimate.of(np.array(cosines), pairs)
