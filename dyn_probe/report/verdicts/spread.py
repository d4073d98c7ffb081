"""Which pairs carry the fall, whether the margin follows length, and which layers carry the cosine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report import pair_columns
from dyn_probe.report.agreement import spearman
from dyn_probe.report.by_layer import cosine_parts
from dyn_probe.report.changes import span, step_span
from dyn_probe.report.frames import finite, last_tenth, median, numbers, recorded, share, tenths
from dyn_probe.report.ranked import PREFERRED, RANKINGS, chosen_ranking, covered, pair_rows
from dyn_probe.report.verdicts.verdict import Number, Verdict, percent, say, sig, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

CLEAR = 0.4
"""A rank correlation with length that is worth acting on."""
ENTANGLED = 0.05
"""A mean cosine from which it is worth saying which layers it comes from."""


def concentration(trace: Trace) -> list[Verdict]:
    """How much of the fall of chosen a tenth of the pairs carries: measured per token, or predicted."""
    by_pair, what, formula, unit = falls(trace)
    by_pair = by_pair.sort_values(ascending=False, kind="stable")
    if len(by_pair) < 10 or not by_pair.sum() > 0:
        return []
    top = int(np.ceil(len(by_pair) / 10))
    carried = float(by_pair.iloc[:top].sum() / by_pair.sum())
    sentence = (
        f"{top} of {len(by_pair)} pairs carry {percent(carried)} of the summed {what}, {by_pair.index[0]} the most "
        "(see the ranked pairs)."
    )
    return say(
        "note" if carried > 0.3 else "ok",
        sentence,
        f"Σ {formula}, pairs in descending order: first tenth over all",
        Number("carried", "share of the fall in a tenth of the pairs", carried, "share"),
        Number("largest_fall_chosen", "fall of the first pair", float(by_pair.iloc[0]), unit),
        Number("n", "n", len(by_pair), "pairs"),
        change=("data",) if carried > 0.3 else (),
    )


def falls(trace: Trace) -> tuple[pd.Series, str, str, str]:
    """(fall of chosen by pair, what it is, its formula, its unit): what pairs are ranked by where that was measured,
    else the predicted fall."""
    ranking = chosen_ranking(trace) if any(covered(trace)[name] > 0 for name in PREFERRED) else ""
    if ranking in MEASURED_FALLS:
        what, formula = MEASURED_FALLS[ranking]
        rows = pair_rows(trace.pairs).set_index("pair_id")
        fall = np.fmax(-numbers(rows, RANKINGS[ranking].column), 0)
        return pd.Series(fall, index=rows.index).dropna(), what, formula, "nats/token"
    predicted = pd.Series(np.fmax(-numbers(trace.pairs, "predicted_delta_chosen"), 0))
    by_pair = predicted.groupby(trace.pairs["pair_id"].to_numpy()).sum()
    return by_pair, "predicted fall of chosen", "max(0, −predicted Δa) over a pair's rows", "nats"


MEASURED_FALLS = {
    "fall": (
        "measured fall of chosen per token",
        "max(0, −Δ(a/n_w)), Δ from before the pair's first recorded update to after its last",
    ),
    "reference": ("fall of chosen per token below the reference", "max(0, −(a − r_w)/n_w)"),
}
"""Ranking → what its number says of chosen, and the formula."""


def length(trace: Trace) -> list[Verdict]:
    """Whether the log-ratio margin follows the difference in length."""
    gap = numbers(trace.pairs, "len_chosen") - numbers(trace.pairs, "len_rejected")
    margin, parts = pair_columns.log_ratio_margin(trace.pairs), tenths(trace.pairs)
    last = np.ones(len(gap), bool) if parts is None else parts.last
    now, n = spearman(gap[last], margin[last]), int((np.isfinite(gap) & np.isfinite(margin))[last].sum())
    if np.isnan(now) or n < 20:
        return []
    first = None if parts is None or parts.first.sum() < 20 else parts.first
    before = float("nan") if first is None else spearman(gap[first], margin[first])
    early = "" if np.isnan(before) or parts is None else f" ({signed(before, 2)} in {span(parts.first_steps)})"
    strong, kind = abs(now) >= CLEAR, "longer" if now > 0 else "shorter"
    effect = f"pairs with a {kind} chosen response have the larger margin" if strong else "no clear length bias"
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
        Number("length_correlation", "rank correlation of margin and n_w − n_l", now, "1"),
        Number("longer_chosen", "rows with chosen longer", longer, "share"),
        Number("length_difference", "n_w − n_l, median", typical, "tokens"),
        Number("n", "n", n, "rows"),
        change=("length",) if strong else (),
    )


def layers(trace: Trace) -> list[Verdict]:
    """Which layers the mean cosine at the end of the run comes from."""
    if not recorded(trace.layers, "grad_inner"):
        return []
    rows = last_tenth(trace.layers)
    parts = cosine_parts(rows)
    if not parts.notna().any():
        return []
    whole = Number("cosine", "mean cosine", float(parts.sum()), "1")
    formula = (
        "mean over pairs of ⟨g_w,g_l⟩ of the layer / (‖g_w‖‖g_l‖ of the whole model); the parts add up to the mean "
        "cosine; share = part / sum of the parts above 0"
    )
    where = f"{sig(whole.value)} in {step_span(rows)}"
    if whole.value < ENTANGLED:
        low, high = (layer_words(str(name)) for name in (parts.idxmin(), parts.idxmax()))
        sentence = (
            f"There is no entanglement to attribute to layers: the mean cosine is {where}, with contributions from "
            f"{signed(float(parts.min()))} ({low}) to {signed(float(parts.max()))} ({high})."
        )
        return say("ok", sentence, formula, whole)
    positive = parts.clip(lower=0)
    top = (positive / positive.sum()).sort_values(ascending=False, kind="stable").iloc[:3]
    words = ", ".join(f"{layer_words(str(name))} {percent(value)}" for name, value in top.items())
    against = [layer_words(str(name)) for name, value in parts.items() if value < 0]
    names = f"{', '.join(against[:3])}{' and others' if len(against) > 3 else ''}"
    less = f" Negative contributions come from {names}." if against else ""
    return say(
        "note",
        f"{len(top)} of {len(parts)} layers contribute {percent(float(top.sum()))} of the mean cosine ({where}): "
        f"{words}.{less}",
        formula,
        *(
            Number(f"layer_{name}", f"share of {layer_words(str(name))}", float(value), "share")
            for name, value in top.items()
        ),
        whole,
        Number("n", "n", len(rows) // len(parts), "pair rows"),
    )


def layer_words(name: str) -> str:
    """A layer's name in a sentence: `block 5` for the block numbered 5."""
    return f"block {name}" if name.isdigit() else name
