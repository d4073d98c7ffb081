"""How alike the two responses of a pair are, and what that does to their gradients and changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report.agreement import spearman
from dyn_probe.report.frames import Floats, finite, median, numbers, recorded, share
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, percent, say, sig, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

NEAR = 0.1
"""Edit distance up to which two responses are called near-duplicates: one token in ten differs. A convention."""
MANY = 0.1
"""Share of near-duplicates from which they are worth a look."""
CLEAR = 0.4
"""Size of a rank correlation that is called clear."""
LEAST = 10
"""Pairs from which a correlation is taken."""
OF = ("edit_distance", "shared_prefix", "grad_cosine", "realised_delta_chosen", "realised_delta_rejected")


def by_pair(pairs: pd.DataFrame) -> pd.DataFrame:
    """Mean of the columns OF over each pair's rows."""
    columns = {name: numbers(pairs, name) for name in OF}
    return pd.DataFrame(columns).groupby(pairs["pair_id"].to_numpy()).mean()


def near_duplicates(trace: Trace) -> list[Verdict]:
    """Edit distance of the two responses, the share of near-duplicates, and whether likeness goes with entanglement."""
    if not recorded(trace.pairs, "edit_distance"):
        return []
    rows = by_pair(trace.pairs)
    distance = numbers(rows, "edit_distance")
    near = share(finite(distance) <= NEAR)
    found = {
        "edit_cosine": _correlation(distance, numbers(rows, "grad_cosine")),
        **{
            f"edit_change_{side}": _correlation(distance, numbers(rows, f"realised_delta_{side}"))
            for side in ("chosen", "rejected")
        },
    }
    known = {key: value for key, value in found.items() if np.isfinite(value)}
    said = "; ".join(f"{signed(value, 2)} with {NAMES[key]}" for key, value in known.items())
    entangled = known.get("edit_cosine", 0.0) <= -CLEAR
    meaning = " The more alike two responses are, the more entangled are their gradients." if entangled else ""
    sentence = (
        f"The two responses of a pair have a median edit distance of {sig(median(distance))} and share their first "
        f"{sig(median(numbers(rows, 'shared_prefix')))} tokens (median of {count(len(rows), 'pair')}); {percent(near)} "
        f"are near-duplicates (at most {NEAR:g})."
        + (f" Rank correlation of the edit distance: {said}.{meaning}" if said else "")
    )
    worth = near > MANY and (entangled or not known)
    return say(
        "note" if worth else "ok",
        sentence,
        "Levenshtein distance of the response tokens over the longer length; Spearman's ρ over pairs, of means over a "
        "pair's rows",
        Number("edit_distance", "edit distance, median", median(distance), "share"),
        Number("near_duplicates", f"pairs with an edit distance of at most {NEAR:g}", near, "share"),
        *(Number(key, f"rank correlation of the edit distance with {NAMES[key]}", known[key], "1") for key in known),
        Number("n", "n", len(rows), "pairs"),
        change=("data",) if worth else (),
    )


NAMES = {
    "edit_cosine": "the cosine",
    "edit_change_chosen": "the realised change of chosen",
    "edit_change_rejected": "the realised change of rejected",
}


def _correlation(distance: Floats, values: Floats) -> float:
    both = np.isfinite(distance) & np.isfinite(values)
    return spearman(distance, values) if both.sum() >= LEAST else float("nan")
