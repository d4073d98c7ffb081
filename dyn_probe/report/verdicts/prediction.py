"""How far the first-order story holds in this run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.agreement import Agreement, agreement
from dyn_probe.report.derived import SIDES
from dyn_probe.report.frames import Floats, finite, numbers
from dyn_probe.report.verdicts.verdict import Level, Number, Verdict, count, percent, say, sig

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

GOOD, POOR, FEW = 0.8, 0.6, 20
"""Shares of equal signs from which the prediction counts as good, and below which as poor from FEW rows on."""


def alone(trace: Trace) -> list[Verdict]:
    """The prediction from each pair alone against the realised change."""
    return _compare(trace, "predicted", "from each pair alone", _footing(trace))


def batch(trace: Trace) -> list[Verdict]:
    """The prediction from the whole batch against the realised change."""
    return _compare(trace, "batch", "from the whole batch", "")


def update(trace: Trace) -> list[Verdict]:
    """The first-order change along the optimizer's own update against the realised change."""
    return _compare(trace, "update", "along the optimizer's own update", "")


def _compare(trace: Trace, kind: str, source: str, footing: str) -> list[Verdict]:
    found, base = {}, {}
    for side in SIDES:
        realised = numbers(trace.pairs, f"realised_delta_{side}")
        found[side] = agreement(numbers(trace.pairs, f"{kind}_delta_{side}"), realised)
        base[side] = commoner(realised)
    if not all(entry.n for entry in found.values()):
        return []
    worst = min(entry.same_sign for entry in found.values())
    poor = worst < POOR and min(entry.n for entry in found.values()) >= FEW
    good = worst >= GOOD and all(entry.pearson >= 0.3 for entry in found.values())
    level: Level = "ok" if good else "warning" if poor else "note"
    words = " and ".join(
        f"{percent(entry.same_sign)} of {count(entry.n, side + ' row')} ({_correlation(entry)}; "
        "always guessing "
        f"the commoner sign: {percent(base[side])})"
        for side, entry in found.items()
    )
    advice = " Read the cases of this run as tendencies only." if poor else ""
    return say(
        level,
        (f"The first-order prediction {source} has the sign of the realised change in {words}.{footing}{advice}"),
        "rows with equal signs of prediction and realised Δ; r Pearson, ρ Spearman; scale = median "
        "|realised| "
        "/ median |predicted|",
        *(number for side, entry in found.items() for number in _numbers(side, entry)),
    )


def _correlation(found: Agreement) -> str:
    return "too few for a correlation" if np.isnan(found.pearson) else f"r = {sig(found.pearson, 2)}"


def _numbers(side: str, found: Agreement) -> list[Number]:
    return [
        Number(f"same sign, {side}", found.same_sign, "share"),
        Number(f"r, {side}", found.pearson, "1"),
        Number(f"ρ, {side}", found.spearman, "1"),
        Number(f"scale, {side}", found.scale, "1"),
        Number(f"n, {side}", found.n, "rows"),
    ]


def commoner(realised: Floats) -> float:
    """Share of the most frequent sign: what guessing it every time would score; NaN without values."""
    signs = np.sign(finite(realised))
    return max(float((signs == sign).mean()) for sign in (-1, 0, 1)) if len(signs) else float("nan")


def _footing(trace: Trace) -> str:
    """What the prediction leaves out, with the run's optimizer where the manifest names it."""
    name = trace.about.config.get("optimizer")
    whose = f"of the run's optimizer ({name})" if name else "of the optimizer"
    return (
        " It is one plain gradient step at the recorded learning rate: scaling, momentum and "
        f"clipping {whose} "
        "are not in it."
    )
