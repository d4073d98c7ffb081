"""Theorem 3 of the entanglement paper at the positions of the followed pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.frames import Floats, share
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, percent, say

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def after(trace: Trace) -> list[Verdict]:
    """Theorem 3 (Yuan et al. 2024): at how many positions its assumption holds, and at how many its conclusion does."""
    holds, moved = (positions(trace, name) for name in ("theorem_3_holds", "theorem_3_change"))
    if not len(holds):
        return []
    assumed, falls = share(holds > 0), share(moved <= 0)
    pairs = int(trace.tokens["pair_id"].nunique())
    sentence = (
        "After the first difference the assumption of Theorem 3, that the chosen beginning makes the shared token "
        f"more probable and every other token less, holds at {percent(assumed)} of "
        f"{count(len(holds), 'recorded position')} ({count(pairs, 'followed pair')}); its conclusion, that a step on "
        f"the logits alone does not raise the shared token of chosen, at {percent(falls)}."
    )
    return say(
        "note",
        sentence,
        "s_w[i] ≥ s_l[i] and s_w[j] ≤ s_l[j] for all j ≠ i; conclusion: (1−s_w[i])(s_l[i]−s_w[i]) − Σ_{j≠i} "
        "s_w[j]·(s_l[j]−s_w[j]) ≤ 0, from the model's own distributions at aligned positions with the same token",
        Number("assumption_holds", "positions at which the assumption holds", assumed, "share"),
        Number("conclusion_holds", "positions at which the conclusion holds", falls, "share"),
        Number("n", "n", len(holds), "positions"),
    )


def positions(trace: Trace, name: str) -> Floats:
    """All values of a list column of the table tokens; none where it was not recorded."""
    if name not in trace.tokens:
        return np.empty(0)
    lists = [np.asarray(values, dtype=np.float64) for values in trace.tokens[name].dropna()]
    return np.concatenate(lists) if lists else np.empty(0)
