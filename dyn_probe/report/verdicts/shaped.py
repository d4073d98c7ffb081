"""What gradient shaping did: gate, ρ and token mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.changes import span
from dyn_probe.report.frames import finite, median, numbers, share, tenths
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, percent, say, sig

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def gate(trace: Trace) -> list[Verdict]:
    """How often Gate-DPO's gate was more closed than open."""
    parts, value = tenths(trace.pairs), numbers(trace.pairs, "gate")
    known = finite(value if parts is None else value[parts.last])
    if not len(known):
        return []
    closed = share(known < 0.5)
    early = (
        "" if parts is None else (f" ({percent(share(finite(value[parts.first]) < 0.5))} in {span(parts.first_steps)})")
    )
    sentence = (
        f"The gate was more closed than open in {percent(closed)} of {count(len(known), 'row')} at "
        f"the end{early}; "
        f"its median is {sig(median(known))}."
    )
    return say(
        "note",
        sentence,
        "share of rows with g < 0.5 in the last tenth of the steps",
        Number("rows with g < 0.5", closed, "share"),
        Number("g, median", median(known), "1"),
        Number("n", len(known), "rows"),
    )


def rho(trace: Trace) -> list[Verdict]:
    """How hard AdaDPO pulled on chosen, and how often ρ stood at its largest value."""
    value = finite(numbers(trace.pairs, "rho"))
    if not len(value):
        return []
    top = float(np.max(value))
    ceiling = share(value >= top * (1 - 1e-9))
    sentence = (
        f"AdaDPO's ρ has median {sig(median(value))}; it is at its largest value, {sig(top)}, in "
        f"{percent(ceiling)} of {count(len(value), 'row')}."
    )
    return say(
        "note",
        sentence,
        "median of ρ; share of rows with ρ = max ρ",
        Number("ρ, median", median(value), "1"),
        Number("rows at the largest ρ", ceiling, "share"),
        Number("n", len(value), "rows"),
    )


def mask(trace: Trace) -> list[Verdict]:
    """How far the token mask closed, and that the gradients are those of the masked responses."""
    parts, chosen, rejected = (
        tenths(trace.pairs),
        *(numbers(trace.pairs, f"mask_{s}") for s in ("chosen", "rejected")),
    )
    late = [finite(side if parts is None else side[parts.last]) for side in (chosen, rejected)]
    if not len(late[0]) or not len(late[1]):
        return []
    kept = [float(np.mean(side)) for side in late]
    sentence = (
        f"The mean token mask at the end is {sig(kept[0])} on chosen and {sig(kept[1])} on rejected tokens. Gradient "
        "norms, inner products and pulls of this run are those of the masked log-probabilities, so they predict no "
        "change of the plain ones."
    )
    return say(
        "note",
        sentence,
        "mean of m over response tokens, last tenth of the steps; rows are Σ_t m^t·log π^t",
        Number("m_w, mean", kept[0], "1"),
        Number("m_l, mean", kept[1], "1"),
        Number("n", len(late[0]), "rows"),
    )


def masked(trace: Trace) -> bool:
    """Whether the run's gradients are those of masked log-probabilities."""
    return bool(len(finite(numbers(trace.pairs, "mask_chosen"))))
