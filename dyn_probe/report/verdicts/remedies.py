"""What a different ratio of the pulls, or a likelihood term, would do to the recorded pairs (first order)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report import pair_columns
from dyn_probe.report.changes import step_span
from dyn_probe.report.frames import Floats, last_tenth, numbers, share
from dyn_probe.report.push_parts import balance
from dyn_probe.report.verdicts.shaped import masked
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, percent, say, sig

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

FACTORS = np.geomspace(1 / 16, 16, 129)
WORTH = 0.05
"""A gain in the share of case 1 that is worth a sentence."""
FEW = 5
"""With fewer rows nothing is said."""
KEPT = 0.9
"""Share of the rows in which the likelihood term is to keep chosen from falling."""


def last_rows(trace: Trace) -> pd.DataFrame:
    """Rows of the last tenth with both pulls above 0; none where the gradients are those of masked responses."""
    rows = last_tenth(trace.pairs)
    if masked(trace):
        return rows.iloc[:0]
    positive = ("pull_chosen", "pull_rejected", "grad_norm_chosen", "grad_norm_rejected")
    usable = np.isfinite(numbers(rows, "grad_inner"))
    for name in positive:
        usable &= numbers(rows, name) > 0
    return rows[usable]


def ideal_share(rows: pd.DataFrame, factor: float = 1.0) -> float:
    """Share of rows in case 1 if every d_w/d_l were multiplied by `factor`."""
    ratio = pair_columns.pull_ratio(rows) * factor
    return share((ratio >= pair_columns.needed_ratio(rows)) & (ratio <= pair_columns.allowed_ratio(rows)))


def common_factor(trace: Trace) -> list[Verdict]:
    """The one factor on d_w/d_l that would put most pairs into case 1."""
    rows = last_rows(trace)
    if len(rows) < FEW:
        return []
    now = ideal_share(rows)
    reached = np.array([ideal_share(rows, float(factor)) for factor in FACTORS])
    best = _nearest_to_one(reached)
    factor, then = float(FACTORS[best]), float(reached[best])
    gain = then - now >= WORTH
    where = f"{count(len(rows), 'row')} ({step_span(rows)})"
    better = (
        f"If d_w/d_l were {sig(factor)} times as large, {percent(then)} of {where} would be in case 1 instead "
        f"of {percent(now)} (first order, each pair alone)."
    )
    same = (
        f"In {percent(now)} of {where} d_w/d_l is within the limits of case 1; no common factor on it would "
        f"gain {100 * WORTH:.0f} percentage points (first order, each pair alone)."
    )
    return say(
        "note" if gain or now <= 0.5 else "ok",
        better if gain else same,
        "case 1 ⇔ ⟨g_w,g_l⟩/‖g_w‖² ≤ d_w/d_l ≤ ‖g_l‖²/⟨g_w,g_l⟩ (no upper limit where ⟨g_w,g_l⟩ ≤ 0); "
        "factors from 1/16 to 16",
        Number("case_1", "rows in case 1 as recorded", now, "share"),
        Number("factor", "best common factor on d_w/d_l", factor, "1"),
        Number("case_1_then", "rows in case 1 with it", then, "share"),
        Number("n", "n", len(rows), "rows"),
        change=() if not gain else ("sft", "rejected") if factor > 1 else ("normalise", "objective"),
    )


def _nearest_to_one(reached: Floats) -> int:
    """Of the factors that come within 1 % of the best share, the one nearest to 1."""
    good = np.flatnonzero(reached >= reached.max() - 0.01)
    return int(good[np.argmin(np.abs(np.log(FACTORS[good])))])


def nll_weight(trace: Trace) -> list[Verdict]:
    """The weight of a likelihood term that would keep chosen from falling in nine pairs of ten, and what it costs.

    From each pair alone, so it is said only where the pushes of all pairs are not known.
    """
    if balance(trace, own=False) is not None:  # what_moved.between knows the weight from what did move chosen
        return []
    rows = last_rows(trace)
    weight = needed_weight(rows)
    falling = share(weight > 0)
    if len(rows) < FEW or falling < 0.1:
        return []
    most = float(np.quantile(weight, KEPT))
    per_token = float(np.quantile(weight * numbers(rows, "len_chosen"), KEPT))
    rising = share((numbers(rows, "pull_chosen") + most) * numbers(rows, "grad_inner") > _held(rows))
    mean_form = "" if np.isnan(per_token) else f" ({sig(per_token)} on the per-token mean)"
    sentence = (
        f"A likelihood term −λa on chosen with λ = {sig(most)}{mean_form} would keep chosen from falling in "
        f"{percent(KEPT)} of {count(len(rows), 'row')} ({step_span(rows)}); without it, chosen falls in "
        f"{percent(falling)}. Rejected would then rise in {percent(rising)} (first order, each pair alone)."
    )
    return say(
        "note",
        sentence,
        f"{100 * KEPT:.0f}th percentile of max(0, d_l⟨g_w,g_l⟩/‖g_w‖² − d_w); times n_w for the per-token mean",
        Number("falls_chosen", "rows in which chosen falls", falling, "share"),
        Number("weight", "λ on the summed log-probability", most, "1"),
        Number("weight_per_token", "λ on the per-token mean", per_token, "1"),
        Number("rises_rejected", "rows in which rejected would rise", rising, "share"),
        Number("n", "n", len(rows), "rows"),
        change=("sft",),
    )


def needed_weight(rows: pd.DataFrame) -> Floats:
    """max(0, d_l⟨g_w,g_l⟩/‖g_w‖² − d_w): the extra pull on chosen that stops its fall [rows]."""
    lacking = numbers(rows, "pull_rejected") * pair_columns.needed_ratio(rows) - numbers(rows, "pull_chosen")
    return np.maximum(lacking, 0)


def _held(rows: pd.DataFrame) -> Floats:
    """d_l‖g_l‖²: what holds rejected down [rows]."""
    return numbers(rows, "pull_rejected") * numbers(rows, "grad_norm_rejected") ** 2
