"""One verdict on several runs: which is healthier and why, or that it cannot be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.basis import BASES, basis_of, completed
from dyn_probe.report.changes import run_change
from dyn_probe.report.frames import finite
from dyn_probe.report.side_by_side.health import ERRORS, WORTH, Between, harm, healthiest, judged, price
from dyn_probe.report.side_by_side.quantities import Moves, Quantity, moves, quantities
from dyn_probe.report.verdicts.verdict import Number, Verdict, percent, say, sig, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

DIGITS = 2
FORMULA = (
    "harm of a pair = max(0, −Δ(a/n_w)) + max(0, Δ(b/n_l)); healthier: mean harm smaller by more than "
    f"{WORTH} nats/token and {ERRORS:.0f} standard errors over pairs, with a margin that grew, harm per growth of the "
    "margin no larger, and chosen on held-out pairs not lower. The error is between pairs of these runs; other seeds "
    "were not trained"
)
SAID = {
    "change_chosen": "chosen",
    "change_rejected": "rejected",
    "margin_growth": "growth of the margin",
    "rows_in_case_2": "both lowered in",
    "held_out_chosen": "held-out chosen",
    "held_out_rejected": "held-out rejected",
}
"""Quantities that the sentence names, and how."""


def healthier(traces: Mapping[str, Trace]) -> list[Verdict]:
    """Which run did less harm for the margin that it gained, with the numbers of every run on one basis."""
    found = moves(traces)
    if found is None:
        return _unknown(traces)
    pairwise, table = judged(traces), {one.key: one for one in quantities(traces)}
    best = healthiest(pairwise, list(traces))
    others = ", ".join(label for label in traces if label != best)
    reasons = " ".join(_reason(one, found, traces) for one in _told(pairwise, best))
    verb = "healthier than" if len(traces) == 2 else "the healthiest, before"
    sentence = (
        f"{best} is {verb} {others}. {reasons}" if best else f"Which run is healthier cannot be determined. {reasons}"
    )
    return say(
        "note",
        f"{sentence} {_listed(table, traces)}{_lacking(traces, table)}",
        f"{FORMULA}. Changes: medians {found.basis}",
        *_numbers(found, table, traces),
    )


def _told(pairwise: list[Between], best: str) -> list[Between]:
    """What the sentence gives reasons for: what the best run won, or else what was not decided."""
    return [one for one in pairwise if (one.winner == best if best else not one.winner)] or pairwise


def _reason(one: Between, found: Moves, traces: Mapping[str, Trace]) -> str:
    less, more = (one.first, one.second) if one.difference > 0 else (one.second, one.first)
    apart = f"{sig(abs(one.difference), DIGITS)} ± {sig(one.error, DIGITS)} nats/token"
    if one.why == "alike":
        size = apart if np.isfinite(one.error) else f"{sig(abs(one.difference), DIGITS)} nats/token, error unknown"
        both = f"{one.first} and {one.second}"
        return f"The harm to the pairs (fall of chosen plus rise of rejected) in {both} is {size} apart."
    begun = f"{less} harms the pairs less than {more}, by {apart} (fall of chosen plus rise of rejected)"
    prices = [sig(price(found, label), DIGITS) for label in (less, more)]
    words = {
        "less-harm": f", and costs {prices[0]} nats of harm per nat of margin against {prices[1]}",
        "no-margin": ", but its margin did not grow",
        "less-training": f", but only because it trained less: {prices[0]} nats of harm per nat of margin against "
        f"{prices[1]}",
        "held-out": ", but on held-out pairs its chosen ends lower",
    }
    return f"{begun}{words[one.why]}."


def _listed(table: Mapping[str, Quantity], traces: Mapping[str, Trace]) -> str:
    """`In order (a, b): chosen −0.38, −0.1 nats/token; …`."""
    basis = BASES[basis_of(*(completed(trace) for trace in traces.values()))].words
    parts = []
    for key, words in SAID.items():
        row = table.get(key)
        if row is None or not np.isfinite(list(row.values.values())).all():
            continue
        texts = [percent(v) if row.unit == "share" else signed(v, DIGITS) for v in row.values.values()]
        unit = f"of the rows {basis}" if row.unit == "share" else row.unit
        parts.append(f"{words} {', '.join(texts)} {unit}")
    return f"In order ({', '.join(traces)}): {'; '.join(parts)}." if parts else ""


def _lacking(traces: Mapping[str, Trace], table: Mapping[str, Quantity]) -> str:
    """What some runs have and others lack, so that it does not decide."""
    row = table.get("held_out_chosen")
    if row is None or np.isfinite(list(row.values.values())).all():
        return ""
    lack = [label for label, value in row.values.items() if not np.isfinite(value)]
    return f" Held-out pairs do not count here: {', '.join(lack)} evaluated none of them twice."


def _unknown(traces: Mapping[str, Trace]) -> list[Verdict]:
    """No change of chosen is known for all runs."""
    lack = [label for label, trace in traces.items() if run_change(trace) is None]
    why = (
        f"{', '.join(lack)} measured no pair twice and has no reference"
        if lack
        else "they measured their pairs over different stretches of the training"
    )
    return say(
        "warning",
        f"Which run is healthier cannot be determined: no change of chosen is known for all of them ({why}). Record "
        "with --final-pairs above 0, or let pairs recur.",
        FORMULA,
    )


def _numbers(found: Moves, table: Mapping[str, Quantity], traces: Mapping[str, Trace]) -> list[Number]:
    """The numbers of every run, by its place: `run_1_change_chosen`."""
    rows = [
        Number(f"run_{place}_{key}", f"{table[key].name}, {label}", table[key].values[label], table[key].unit)
        for key in SAID
        if key in table
        for place, label in enumerate(traces, start=1)
        if np.isfinite(table[key].values[label])
    ]
    harms = [
        Number(f"run_{place}_harm", f"harm, {label}, mean", float(finite(harm(found, label)).mean()), "nats/token")
        for place, label in enumerate(traces, start=1)
    ]
    return [*harms, *rows]
