"""Which pairs do it, whether length does it, and which layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report import derived
from dyn_probe.report.agreement import spearman
from dyn_probe.report.by_layer import cosine_parts
from dyn_probe.report.changes import span, step_span
from dyn_probe.report.frames import finite, last_tenth, median, numbers, recorded, share, tenths
from dyn_probe.report.verdicts.verdict import Number, Verdict, percent, say, sig, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

CLEAR = 0.4
"""A rank correlation with length that is worth acting on."""
ENTANGLED = 0.05
"""A mean cosine from which it is worth saying which layers carry it."""


def concentration(trace: Trace) -> list[Verdict]:
    """How much of chosen's predicted fall a tenth of the pairs carries."""
    fall = pd.Series(np.fmax(-numbers(trace.pairs, "predicted_delta_chosen"), 0))
    by_pair = fall.groupby(trace.pairs["pair_id"].to_numpy()).sum().sort_values(ascending=False)
    if len(by_pair) < 10 or not by_pair.sum() > 0:
        return []
    top = int(np.ceil(len(by_pair) / 10))
    carried = float(by_pair.iloc[:top].sum() / by_pair.sum())
    sentence = (
        f"{top} of {len(by_pair)} pairs carry {percent(carried)} of all of chosen's predicted fall; "
        "the first "
        f"is {by_pair.index[0]} (see the ranked pairs)."
    )
    return say(
        "note" if carried > 0.3 else "ok",
        sentence,
        "Σ max(0, −predicted Δa) over a pair's rows, pairs in descending order: first tenth over all",
        Number("share of the fall in a tenth of the pairs", carried, "share"),
        Number("predicted fall of the first pair, summed over its steps", float(by_pair.iloc[0]), "nats"),
        Number("n", len(by_pair), "pairs"),
        change=("data",) if carried > 0.3 else (),
    )


def length(trace: Trace) -> list[Verdict]:
    """Whether the log-ratio margin follows the difference in length."""
    gap = numbers(trace.pairs, "len_chosen") - numbers(trace.pairs, "len_rejected")
    margin, parts = derived.log_ratio_margin(trace.pairs), tenths(trace.pairs)
    last = np.ones(len(gap), bool) if parts is None else parts.last
    now, n = spearman(gap[last], margin[last]), int((np.isfinite(gap) & np.isfinite(margin))[last].sum())
    if np.isnan(now) or n < 20:
        return []
    first = None if parts is None or parts.first.sum() < 20 else parts.first
    before = float("nan") if first is None else spearman(gap[first], margin[first])
    early = "" if np.isnan(before) or parts is None else f" ({signed(before, 2)} in {span(parts.first_steps)})"
    strong, kind = abs(now) >= CLEAR, "longer" if now > 0 else "shorter"
    effect = (f"pairs with a {kind} chosen response have the larger margin") if strong else "no clear length bias"
    longer, typical = share(finite(gap[last]) > 0), median(gap[last])
    sentence = (
        f"The log-ratio margin's rank correlation with the length difference n_w − n_l is {signed(now, 2)} at the "
        f"end{early}: {effect} ({n} rows; chosen is longer in {percent(longer)}, median difference "
        f"{signed(typical)} tokens)."
    )
    return say(
        "note" if strong else "ok",
        sentence,
        "Spearman's ρ of n_w − n_l with (a − r_w) − (b − r_l) (without a reference: with the change of a − b since the "
        "pair was first recorded), last tenth of the steps",
        Number("rank correlation of margin and n_w − n_l", now, "1"),
        Number("rows with chosen longer", longer, "share"),
        Number("n_w − n_l, median", typical, "tokens"),
        Number("n", n, "rows"),
        change=("length",) if strong else (),
    )


def layers(trace: Trace) -> list[Verdict]:
    """Which layers carry the cosine at the end of the run."""
    if not recorded(trace.layers, "grad_inner"):
        return []
    rows = last_tenth(trace.layers)
    parts = cosine_parts(rows)
    if not parts.notna().any():
        return []
    whole = Number("mean cosine", float(parts.sum()), "1")
    formula = (
        "mean over pairs of ⟨g_w,g_l⟩ of the layer / (‖g_w‖‖g_l‖ of the whole model); the parts add up to the mean "
        "cosine; share = part / sum of the parts above 0"
    )
    where = f"the mean cosine in {step_span(rows)}, {sig(whole.value)},"
    if whole.value < ENTANGLED:
        low, high = (layer_words(str(name)) for name in (parts.idxmin(), parts.idxmax()))
        sentence = (
            f"There is no entanglement to share out: {where} has parts from {signed(float(parts.min()))} ({low}) to "
            f"{signed(float(parts.max()))} ({high})."
        )
        return say("ok", sentence, formula, whole)
    positive = parts.clip(lower=0)
    top = (positive / positive.sum()).sort_values(ascending=False, kind="stable").iloc[:3]
    words = ", ".join(f"{layer_words(str(name))} {percent(value)}" for name, value in top.items())
    against = [layer_words(str(name)) for name, value in parts.items() if value < 0]
    less = f"; against it work {', '.join(against[:3])}{' and others' if len(against) > 3 else ''}" if against else ""
    return say(
        "note",
        f"What makes up {where} comes to {percent(float(top.sum()))} from {len(top)} of {len(parts)} layers: "
        f"{words}{less}.",
        formula,
        *(Number(f"share of {layer_words(str(name))}", float(value), "share") for name, value in top.items()),
        whole,
        Number("n", len(rows) // len(parts), "pair rows"),
    )


def layer_words(name: str) -> str:
    """A layer's name in a sentence: `block 5` for the block numbered 5."""
    return f"block {name}" if name.isdigit() else name
