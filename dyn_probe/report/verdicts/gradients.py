"""Entanglement at the end of the run, fading and negative pulls, clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report import derived
from dyn_probe.report.changes import span, step_span
from dyn_probe.report.frames import finite, median, numbers, share, tenths
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, percent, say, sig

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

FADED = 0.2
"""Share of the first pulls below which a run counts as fading out."""


def alignment(trace: Trace) -> list[Verdict]:
    """Cosine and norms of the two gradients, start against end."""
    parts = tenths(trace.pairs)
    rows = trace.pairs if parts is None else trace.pairs[parts.last]
    cosine, ratio = finite(numbers(rows, "grad_cosine")), median(derived.norm_ratio(rows))
    if not len(cosine):
        return []
    low, middle, high = np.quantile(cosine, (0.25, 0.5, 0.75))
    before = float("nan") if parts is None else median(numbers(trace.pairs[parts.first], "grad_cosine"))
    since = "" if parts is None else f"; in {span(parts.first_steps)} the cosine was {sig(before)}"
    sentence = (
        f"Chosen and rejected gradients have a cosine of {sig(middle)} (median; middle half {sig(low)} to "
        f"{sig(high)}) and norms in the ratio ‖g_w‖/‖g_l‖ = {sig(ratio)} in {step_span(rows)}{since}."
    )
    return say(
        "note",
        sentence,
        "median of ⟨g_w,g_l⟩/(‖g_w‖‖g_l‖); with equal pulls chosen falls where ‖g_w‖/‖g_l‖ < cosine",
        Number("cosine, median", float(middle), "1"),
        *([Number("cosine, median of the first tenth", before, "1")] if parts else []),
        Number("‖g_w‖/‖g_l‖, median", ratio, "1"),
        Number("n", len(cosine), "rows"),
    )


def fading(trace: Trace) -> list[Verdict]:
    """Whether the pulls have faded: how much of the first push on chosen and rejected is left."""
    parts = tenths(trace.pairs)
    if parts is None:
        return []
    left = {}
    for side in derived.SIDES:
        pull = np.abs(numbers(trace.pairs, f"pull_{side}"))
        before, after = median(pull[parts.first]), median(pull[parts.last])
        if not before > 0 or np.isnan(after):
            return []
        left[side] = after / before
    faded = max(left.values()) < FADED
    meaning = ("the loss is content with most pairs, training is fading out") if faded else "the loss still pulls"
    sentence = (
        f"The median pull in {span(parts.last_steps)} is {percent(left['chosen'])} (chosen) and "
        f"{percent(left['rejected'])} (rejected) of that in {span(parts.first_steps)}: {meaning}."
    )
    return say(
        "note" if faded else "ok",
        sentence,
        "median |d_w| (|d_l|) of the last tenth of the steps over that of the first tenth",
        *(Number(f"median |pull| on {side}, last over first", value, "share") for side, value in left.items()),
        Number("n", int((parts.first | parts.last).sum()), "rows"),
        change=("early",) if faded else (),
    )


def negative_pulls(trace: Trace) -> list[Verdict]:
    """Rows that the loss pulls the wrong way round, because it has passed its target."""
    chosen, rejected = numbers(trace.pairs, "pull_chosen"), numbers(trace.pairs, "pull_rejected")
    known = np.isfinite(chosen) & np.isfinite(rejected)
    part = share((chosen < 0) | (rejected < 0), known)
    if not part > 0:
        return []
    down, up = share(chosen < 0, known), share(rejected < 0, known)
    sentence = (
        f"In {percent(part)} of {int(known.sum())} pair rows a pull is negative: the loss has passed "
        "its target "
        f"there, and pushes chosen down ({percent(down)}) or rejected up ({percent(up)}) on purpose."
    )
    return say(
        "note",
        sentence,
        "share of rows with d_w < 0 or d_l < 0",
        Number("rows with a negative pull", part, "share"),
        Number("rows with d_w < 0", down, "share"),
        Number("rows with d_l < 0", up, "share"),
        Number("n", int(known.sum()), "rows"),
        change=("objective", "early"),
    )


def clipping(trace: Trace) -> list[Verdict]:
    """How many steps were clipped, and by how much."""
    before, after = numbers(trace.steps, "grad_norm"), numbers(trace.steps, "grad_norm_clipped")
    both = np.isfinite(before) & np.isfinite(after) & (after > 0)
    if not both.any():
        return []
    ratio = before[both] / after[both]
    clipped = ratio > 1 + 1e-4
    part, factor = share(clipped), median(ratio[clipped])
    extent = f", by a factor of {sig(factor)} (median)" if clipped.any() else ""
    remark = " There the recorded learning rate overstates the step by that factor." if part > 0.5 else ""
    return say(
        "note" if part > 0.5 else "ok",
        f"Clipping shortened {percent(part)} of {count(int(both.sum()), 'step')}{extent}.{remark}",
        "steps with grad_norm > grad_norm_clipped; factor = grad_norm / grad_norm_clipped",
        Number("steps clipped", part, "share"),
        *([Number("norm before over after, median of the clipped steps", factor, "1")] if clipped.any() else []),
        Number("n", int(both.sum()), "steps"),
        change=("clip",) if part > 0.5 else (),
    )
