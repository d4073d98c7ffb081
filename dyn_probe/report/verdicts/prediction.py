"""How well first-order predictions hold in this run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.agreement import Agreement, agreement
from dyn_probe.report.frames import Floats, finite, numbers
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.verdicts.verdict import Level, Number, Verdict, count, percent, say, sig

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

GOOD, POOR, FEW = 0.8, 0.6, 20
"""Shares of equal signs from which the prediction counts as good, and below which as poor from FEW rows on. One that
always predicting the majority sign beats is never good."""


def alone(trace: Trace) -> list[Verdict]:
    """The prediction from each pair alone compared with the realised change."""
    return _compare(trace, "predicted", "from each pair alone", _footing(trace))


def batch(trace: Trace) -> list[Verdict]:
    """The prediction from the whole batch compared with the realised change."""
    return _compare(trace, "batch", "from the whole batch", "")


def update(trace: Trace) -> list[Verdict]:
    """The first-order change along the optimizer's own update compared with the realised change."""
    return _compare(trace, "update", "along the optimizer's own update", "")


def _compare(trace: Trace, kind: str, source: str, footing: str) -> list[Verdict]:
    found, base = {}, {}
    for side in SIDES:
        realised = numbers(trace.pairs, f"realised_delta_{side}")
        found[side] = agreement(numbers(trace.pairs, f"{kind}_delta_{side}"), realised)
        base[side] = majority(realised)
    if not all(entry.n for entry in found.values()):
        return []
    worst = min(entry.same_sign for entry in found.values())
    poor = worst < POOR and min(entry.n for entry in found.values()) >= FEW
    better = all(entry.same_sign >= base[side] for side, entry in found.items())
    good = better and worst >= GOOD and all(entry.pearson >= 0.3 for entry in found.values())
    level: Level = "ok" if good else "warning" if poor else "note"
    words = " and ".join(
        f"{percent(entry.same_sign)} of {count(entry.n, side + ' row')} ({_correlation(entry)}; always predicting the "
        f"majority sign: {percent(base[side])})"
        for side, entry in found.items()
    )
    advice = " Read this prediction as a tendency only." if poor else ""
    return say(
        level,
        f"The first-order prediction {source} has the sign of the realised change in {words}.{footing}{advice}",
        "rows in which prediction and realised Δ have the same sign; r Pearson, ρ Spearman; scale = median |realised| "
        "/ median |predicted|",
        *(number for side, entry in found.items() for number in _numbers(side, entry)),
    )


def _correlation(found: Agreement) -> str:
    return "too few for a correlation" if np.isnan(found.pearson) else f"r = {sig(found.pearson, 2)}"


def _numbers(side: str, found: Agreement) -> list[Number]:
    return [
        Number(f"same_sign_{side}", f"same sign, {side}", found.same_sign, "share"),
        Number(f"pearson_{side}", f"r, {side}", found.pearson, "1"),
        Number(f"spearman_{side}", f"ρ, {side}", found.spearman, "1"),
        Number(f"scale_{side}", f"scale, {side}", found.scale, "1"),
        Number(f"n_{side}", f"n, {side}", found.n, "rows"),
    ]


def majority(realised: Floats) -> float:
    """Share of the most frequent sign: what always predicting it would score; NaN without values."""
    signs = np.sign(finite(realised))
    return max(float((signs == sign).mean()) for sign in (-1, 0, 1)) if len(signs) else float("nan")


def _footing(trace: Trace) -> str:
    """What the prediction leaves out, with the run's optimizer where the manifest names it."""
    name = trace.about.config.get("optimizer")
    whose = f"the run's optimizer ({name})" if name else "the optimizer"
    return (
        " It assumes one plain gradient step at the recorded learning rate, without the scaling and momentum of "
        f"{whose} and without clipping."
    )
