"""How far the first-order story holds in this run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.agreement import Agreement, agreement
from dyn_probe.report.derived import SIDES
from dyn_probe.report.frames import Floats, finite, numbers
from dyn_probe.report.verdicts.verdict import Level, Number, Verdict, percent, say, sig

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

GOOD, POOR = 0.8, 0.6
"""Shares of equal signs from which the prediction counts as good, and below which as poor."""


def alone(trace: Trace) -> list[Verdict]:
    """The prediction from each pair alone against the realised change."""
    return _compare(trace, "predicted", "from each pair alone", _footing(trace))


def batch(trace: Trace) -> list[Verdict]:
    """The prediction from the whole batch against the realised change."""
    return _compare(trace, "batch", "from the whole batch", "")


def _compare(trace: Trace, kind: str, source: str, footing: str) -> list[Verdict]:
    found, base = {}, {}
    for side in SIDES:
        realised = numbers(trace.pairs, f"realised_delta_{side}")
        found[side] = agreement(numbers(trace.pairs, f"{kind}_delta_{side}"), realised)
        base[side] = commoner(realised)
    if not all(entry.n for entry in found.values()):
        return []
    worst = min(entry.same_sign for entry in found.values())
    level: Level = "ok" if worst >= GOOD else "note" if worst >= POOR else "warning"
    words = " and ".join(
        f"{percent(entry.same_sign)} of {entry.n} {side} rows (r = {sig(entry.pearson, 2)}; always guessing "
        f"the commoner sign: {percent(base[side])})"
        for side, entry in found.items()
    )
    advice = " Read the cases of this run as tendencies only." if worst < POOR else ""
    return say(
        level,
        (
            f"The first-order prediction {source} has the sign of the realised change in "
            f"{words}.{footing}{advice}"
        ),
        "rows with equal signs of prediction and realised Δ; r Pearson, ρ Spearman; scale = median "
        "|realised| "
        "/ median |predicted|",
        *(number for side, entry in found.items() for number in _numbers(side, entry)),
    )


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
    config = trace.manifest.get("config")
    name = config.get("optimizer") if isinstance(config, dict) else None
    whose = f"of the run's optimizer ({name})" if name else "of the optimizer"
    return (
        " It is one plain gradient step at the recorded learning rate: scaling, momentum and "
        f"clipping {whose} "
        "are not in it."
    )
