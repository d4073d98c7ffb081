"""Entanglement at the end of the run, saturated and negative pulls, clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report import pair_columns
from dyn_probe.report.changes import span, step_span
from dyn_probe.report.frames import finite, half_errors, median, numbers, share, tenths
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, percent, quartiles, say, sig, within

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

FADED = 0.2
"""Share of the first pulls below which the loss counts as saturated."""
SCALE_FREE = ("adam", "rmsprop", "lion", "adafactor")
"""Beginnings of the names of optimizers that divide by the gradient's own scale."""


def alignment(trace: Trace) -> list[Verdict]:
    """Cosine and norms of the chosen and the rejected gradient, at the start and at the end."""
    parts = tenths(trace.pairs)
    rows = trace.pairs if parts is None else trace.pairs[parts.last]
    cosine, ratio = finite(numbers(rows, "grad_cosine")), median(pair_columns.norm_ratio(rows))
    if not len(cosine):
        return []
    low, middle, high = np.quantile(cosine, (0.25, 0.5, 0.75))
    before = float("nan") if parts is None else median(numbers(trace.pairs[parts.first], "grad_cosine"))
    since = "" if parts is None else f" In {span(parts.first_steps)} the median cosine was {sig(before)}."
    error = half_errors(trace).get("cosine_error", float("nan"))
    sentence = (
        f"In {step_span(rows)} the chosen and rejected gradients have a median cosine of {within(middle, error)} "
        f"({quartiles(low, high)}) and a median norm ratio ‖g_w‖/‖g_l‖ of {sig(ratio)}.{since}"
    )
    return say(
        "note",
        sentence,
        "median of ⟨g_w,g_l⟩/(‖g_w‖‖g_l‖); with equal pulls chosen falls where ‖g_w‖/‖g_l‖ < cosine",
        Number("cosine", "cosine, median", float(middle), "1"),
        *([Number("cosine_first", "cosine, median of the first tenth", before, "1")] if parts else []),
        Number("norm_ratio", "‖g_w‖/‖g_l‖, median", ratio, "1"),
        Number("n", "n", len(cosine), "rows"),
    )


def fading(trace: Trace) -> list[Verdict]:
    """Whether the loss is saturated: how much of the initial pulls is left at the end."""
    parts = tenths(trace.pairs)
    if parts is None:
        return []
    left = {}
    for side in pair_columns.SIDES:
        pull = np.abs(numbers(trace.pairs, f"pull_{side}"))
        before, after = median(pull[parts.first]), median(pull[parts.last])
        if not before > 0 or np.isnan(after):
            return []
        left[side] = after / before
    faded = max(left.values()) < FADED
    meaning = "the loss is saturated on most pairs" if faded else "the loss is not saturated"
    sentence = (
        f"In {span(parts.last_steps)} the median pull is {percent(left['chosen'])} (chosen) and "
        f"{percent(left['rejected'])} (rejected) of what it was in {span(parts.first_steps)}: {meaning}."
    )
    return say(
        "note" if faded else "ok",
        sentence,
        "median |d_w| (|d_l|) of the last tenth of the steps over that of the first tenth",
        *(
            Number(f"pull_left_{side}", f"median |pull| on {side}, last over first", value, "share")
            for side, value in left.items()
        ),
        Number("n", "n", int((parts.first | parts.last).sum()), "rows"),
        change=("early",) if faded else (),
    )


def negative_pulls(trace: Trace) -> list[Verdict]:
    """Rows in which a pull is negative, because the pair is past the target of the loss."""
    chosen, rejected = numbers(trace.pairs, "pull_chosen"), numbers(trace.pairs, "pull_rejected")
    known = np.isfinite(chosen) & np.isfinite(rejected)
    part = share((chosen < 0) | (rejected < 0), known)
    if not part > 0:
        return []
    down, up = share(chosen < 0, known), share(rejected < 0, known)
    sentence = (
        f"A pull is negative in {percent(part)} of {count(int(known.sum()), 'pair row')}: these pairs are past the "
        f"target of the loss, which itself pushes chosen down ({percent(down)}) or rejected up ({percent(up)})."
    )
    return say(
        "note",
        sentence,
        "share of rows with d_w < 0 or d_l < 0",
        Number("negative", "rows with a negative pull", part, "share"),
        Number("negative_chosen", "rows with d_w < 0", down, "share"),
        Number("negative_rejected", "rows with d_l < 0", up, "share"),
        Number("n", "n", int(known.sum()), "rows"),
        change=("objective", "early"),
    )


def clipping(trace: Trace) -> list[Verdict]:
    """How many steps were clipped, by how much, and whether that shortened them."""
    before, after = numbers(trace.steps, "grad_norm"), numbers(trace.steps, "grad_norm_clipped")
    both = np.isfinite(before) & np.isfinite(after) & (after > 0)
    if not both.any():
        return []
    ratio = before[both] / after[both]
    clipped = ratio > 1 + 1e-4
    part, factor = share(clipped), median(ratio[clipped])
    limit = trace.about.config.get("max_grad_norm")
    at = f" at norm {limit:g}" if isinstance(limit, int | float) and limit > 0 else ""
    extent = f", reducing its norm by a factor of {sig(factor)} (median)" if clipped.any() else ""
    sentence = f"The gradient was clipped{at} in {percent(part)} of {count(int(both.sum()), 'step')}{extent}."
    return say(
        "note" if part > 0.5 else "ok",
        sentence + (_meaning_of_clipping(trace) if part > 0.5 else ""),
        "steps with grad_norm > grad_norm_clipped; factor = grad_norm / grad_norm_clipped",
        Number("clipped", "steps clipped", part, "share"),
        *(
            [Number("clip_factor", "norm before over after, median of the clipped steps", factor, "1")]
            if clipped.any()
            else []
        ),
        Number("n", "n", int(both.sum()), "steps"),
        change=("clip",) if part > 0.5 and not scale_free(trace) else (),
    )


def scale_free(trace: Trace) -> bool:
    """Whether the run's optimizer divides by the gradient's own scale, so that a constant factor cancels."""
    return str(trace.about.config.get("optimizer") or "").casefold().startswith(SCALE_FREE)


def _meaning_of_clipping(trace: Trace) -> str:
    """What clipping most steps means for their size under the run's optimizer; nothing where it is not known."""
    name = trace.about.config.get("optimizer")
    if not name:
        return ""
    if scale_free(trace):
        return (
            f" {name} divides by the gradient's running scale, so that clipping hardly shortens the step; it only "
            "weights steps with large gradients less."
        )
    return f" With {name} these steps are shorter by that factor than the recorded learning rate says."
