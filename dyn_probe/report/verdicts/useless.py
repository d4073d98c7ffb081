"""Pairs that can teach nothing: identical responses, empty ones, and gradients that are nearly the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.frames import numbers, share
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, percent, say

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

EQUAL = 0.999
"""Cosine of chosen and rejected gradient from which on the two are nearly equal."""
MANY = 0.05
"""Share of the pairs from which on they are warned about."""


def useless(trace: Trace) -> list[Verdict]:
    """Pairs that are identical, empty or nearly equal, counted once each."""
    rows = trace.pairs.dropna(subset=["pair_id"]).drop_duplicates("pair_id")
    lengths = [numbers(rows, f"len_{side}") for side in ("chosen", "rejected")]
    empty = np.minimum(*lengths) == 0
    same = (numbers(rows, "edit_distance") == 0) & ~empty
    close = (numbers(rows, "grad_cosine") >= EQUAL) & ~empty & ~same
    bad = empty | same | close
    if not bad.any():
        return []
    kinds = {
        "are identical": same,
        "have an empty response": empty,
        "have nearly equal gradients (cosine ≥ 0.999)": close,
    }
    said = ", ".join(f"{int(mask.sum()):,} {words}" for words, mask in kinds.items() if mask.any())
    return say(
        "warning" if share(bad) >= MANY else "note",
        f"Of {count(len(rows), 'pair')}, {said}: {percent(share(bad))} of the pairs cannot raise one response and "
        "lower the other.",
        "edit_distance = 0; a length of 0; grad_cosine ≥ 0.999 at the pair's first recorded row",
        Number("identical", "identical pairs", int(same.sum()), "pairs"),
        Number("empty", "pairs with an empty response", int(empty.sum()), "pairs"),
        Number("nearly_equal", "pairs with nearly equal gradients", int(close.sum()), "pairs"),
        Number("n", "n", len(rows), "pairs"),
        change=("data",),
    )
