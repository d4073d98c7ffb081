"""A loss that says nothing any more: near 0 at once, or stuck where it began."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report import pair_columns
from dyn_probe.report.changes import span
from dyn_probe.report.frames import finite, median, numbers, tenths
from dyn_probe.report.verdicts.verdict import Number, Verdict, percent, say, sig

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

AT_ONCE = 0.2
"""Share of the run within which a loss that fades does so at once."""
GONE = 0.1
"""Median pull, relative to the first recorded step's, below which the loss is saturated."""
LEVEL = math.log(2)
"""Loss of a pair with margin 0, for every objective that is −log σ of a margin."""
NEAR = 0.01
"""A median loss this near to LEVEL at both ends of a run has not moved."""


def saturated(trace: Trace) -> list[Verdict]:
    """Whether the loss was saturated almost at once: pulls that are gone within the first fifth of the run."""
    pairs, steps = trace.pairs, numbers(trace.pairs, "step")
    pulls = np.abs(np.array([numbers(pairs, f"pull_{side}") for side in pair_columns.SIDES]))
    if not np.isfinite(pulls).any() or len(np.unique(steps)) < 10:
        return []
    low, high = float(steps.min()), float(steps.max())
    later = steps >= low + AT_ONCE * (high - low)
    left = {side: median(pull[later]) / median(pull[steps == low]) if median(pull[steps == low]) > 0 else math.nan
            for side, pull in zip(pair_columns.SIDES, pulls, strict=True)}  # fmt: skip
    if not all(share < GONE for share in left.values()):  # false for NaN: both must be known
        return []
    unmoved = median(numbers(trace.steps, "unmoved_share"))
    far = median(finite(pair_columns.per_token(pairs[steps == low], "chosen")))
    sentence = (
        f"The loss is saturated almost at once: after the first fifth of the run the median pull is "
        f"{percent(left['chosen'])} (chosen) and {percent(left['rejected'])} (rejected) of what it was at the first "
        "recorded step, so the pairs hardly train the model any more"
    )
    sentence += f"; a typical step leaves {percent(unmoved)} of the weights as they were" if unmoved > 0.5 else ""
    sentence += f". At the start a chosen token has {sig(far, 2)} nats: " if np.isfinite(far) else ". "
    sentence += "responses that the model finds improbable are easily distinguished by their margin. "
    sentence += "A smaller beta or learning rate lets the loss last longer."
    return say(
        "warning",
        sentence,
        "median |d_w| (|d_l|) of the rows after a fifth of the steps over that of the first recorded step",
        *(
            Number(f"left_at_once_{side}", f"median |pull| on {side}, relative to the start", value, "share")
            for side, value in left.items()
        ),
        Number("n", "n", int(later.sum()), "rows"),
        change=("lr",),
    )


def stuck(trace: Trace) -> list[Verdict]:
    """Whether the loss never left log 2 = 0.693, the loss of a pair whose margin is 0."""
    parts, loss = tenths(trace.pairs), numbers(trace.pairs, "loss")
    if parts is None or len(np.unique(numbers(trace.pairs, "step"))) < 10:
        return []
    first, last = (median(loss[mask]) for mask in (parts.first, parts.last))
    if not max(abs(first - LEVEL), abs(last - LEVEL)) < NEAR:
        return []
    unmoved = median(numbers(trace.steps, "unmoved_share"))
    held = f" A typical step leaves {percent(unmoved)} of the weights as they were." if unmoved > 0.5 else ""
    sentence = (
        f"The loss is stuck at {sig(last)} (log 2 = 0.693, a margin of 0) from {span(parts.first_steps)} to "
        f"{span(parts.last_steps)}: the pairs have not been distinguished.{held} Raise the learning rate; check that "
        "the weights being trained are those being evaluated, and that the two responses differ at all."
    )
    return say(
        "warning",
        sentence,
        "median ℓ of the first and of the last tenth of the steps, both within 0.01 of log 2",
        Number("loss_first", "loss, median of the first tenth", first, "nats"),
        Number("loss_last", "loss, median of the last tenth", last, "nats"),
        Number("n", "n", int(np.isfinite(loss[parts.last]).sum()), "rows"),
    )
