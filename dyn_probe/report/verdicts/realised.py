"""What the updates did to the pairs, and whether a fall of chosen was predicted from the pair's own gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.basis import case_of, completed
from dyn_probe.report.frames import Mask, finite, numbers, share
from dyn_probe.report.verdicts.cases import listed
from dyn_probe.report.verdicts.verdict import Level, Number, Verdict, count, percent, say
from dyn_probe.trace.schema import CASES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

FEW = 20
"""With fewer falls nothing is said about their origin."""


def measured(trace: Trace) -> list[Verdict]:
    """Cases by the measured changes of every recorded update."""
    known = finite(case_of(completed(trace), "realised"))
    if not len(known):
        return []
    fell = share((known == 2) | (known == 4))
    level: Level = "warning" if fell > 0.5 and len(known) >= FEW else "note"
    return say(
        level,
        f"Measured across every recorded update: {listed(known)}; chosen fell in {percent(fell)} "
        f"of {count(len(known), 'row')}.",
        "signs of the realised Δa and Δb: log-probability after the optimizer's update minus before it",
        *(
            Number(f"case_{number}", f"rows in case {number}", share(known == number), "share")
            for number in CASES
            if (known == number).any()
        ),
        Number("fell_chosen", "rows in which chosen fell", fell, "share"),
        Number("n", "n", len(known), "rows"),
    )


def origin(trace: Trace) -> list[Verdict]:
    """Of the measured falls of chosen: how many the pair's own gradients predict, and what made the others."""
    fell = numbers(trace.pairs, "realised_delta_chosen") < 0
    own, batch = (numbers(trace.pairs, f"{name}_delta_chosen") for name in ("predicted", "batch"))
    falls = fell & np.isfinite(own)
    if falls.sum() < FEW:
        return []
    alone = share(own < 0, falls)
    others, more = _others(falls & (own >= 0), batch)
    sentence = (
        f"Of {count(int(falls.sum()), 'measured fall')} of chosen, the pair's own gradients predict {percent(alone)}; "
        f"the others came from other pairs of the batch or from the optimizer{others}."
    )
    return say(
        "note",
        sentence,
        "rows with realised Δa < 0: own where the predicted Δa of the pair alone is < 0; other pairs where only the "
        "batch prediction is < 0; optimizer (scaling, momentum, step size) where neither is",
        Number("falls_own", "falls predicted from the pair alone", alone, "share"),
        *more,
        Number("n", "n", int(falls.sum()), "rows"),
        change=("normalise", "chosen", "rejected", "sft", "lr"),
    )


def _others(falls: Mask, batch: np.ndarray) -> tuple[str, list[Number]]:
    """Falls that the pair alone does not predict, split by the batch prediction where the full Gram was recorded."""
    known = falls & np.isfinite(batch)
    if known.sum() < FEW:
        return "", []
    pairs = share(batch < 0, known)
    rows = count(int(known.sum()), "row")
    words = f" (of {rows} with a full Gram: other pairs {percent(pairs)}, optimizer {percent(1 - pairs)})"
    return words, [
        Number("falls_other_pairs", "of the other falls, by other pairs", pairs, "share"),
        Number("n_others", "n of these", int(known.sum()), "rows"),
    ]
