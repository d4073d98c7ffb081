"""Whether hidden states alone would have found the pairs that the gradients and the run point to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dyn_probe.report.ranked import agreements
from dyn_probe.report.verdicts.verdict import Number, Verdict, say, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

WORDS = {
    "excess": "the exact condition",
    "run": "the measured fall of chosen to the end of the run",
    "fall": "the measured fall of chosen over the recorded rows",
}
"""Ranking → what it ranks by, in words."""


def similarity(trace: Trace) -> list[Verdict]:
    """How far the ranking by similarity of hidden states (CHES) agrees with the exact and with the measured ranking."""
    found = agreements(trace, "ches-normalised")
    if "run" in found:
        found.pop("fall", None)
    if not found:
        return []
    words = " and ".join(f"{WORDS[name]} at {signed(rho, 2)} ({n:,} pairs)" for name, (rho, n) in found.items())
    return say(
        "note",
        f"The similarity of hidden states (CHES, per token), which needs no gradient, ranks the pairs like {words}, as "
        "rank correlations.",
        "Spearman correlation over the pairs, at their last recorded row, of ches_normalised with "
        "⟨g_w,g_l⟩ − (d_w/d_l)‖g_w‖² and with minus the change of a/n_w",
        *(
            Number(f"ches_against_{name}", f"rank correlation with {name}", rho, "1")
            for name, (rho, _) in found.items()
        ),
    )
