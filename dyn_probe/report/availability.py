"""Which columns a figure or statement needs, and what to say where they were not recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from dyn_probe.objectives import SHAPINGS
from dyn_probe.report.frames import recorded

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

REMEDIES: dict[str, str] = {
    "pairs.realised": "the pairs evaluated again after the update (--realised)",
    "pairs.update": "the first-order change along the optimizer's update (--update)",
    "pairs.batch_delta": "the prediction for the whole batch (--gram-every)",
    "pairs.logp": "log-probabilities of the pairs",
    "pairs.logp_chosen_": "token log-probabilities of the pairs",
    "pairs.logp_rejected_": "token log-probabilities of the pairs",
    "pairs.edit_distance": "the tokens of the pairs",
    "pairs.ref_logp": "a reference policy",
    "pairs.grad": "the gradients of the pairs",
    "pairs.predicted": "the gradients of the pairs and a learning rate",
    "pairs.case_plain": "the gradients of the pairs",
    "pairs.case_update": "the change under the optimizer's own update (--update)",
    "pairs.case_realised": "the same pairs measured again after the update (--realised)",
    "pairs.ches": "hidden states that enter the head (a model of transformers; probe.step(…, responses=…))",
    "pairs.pull": "the pulls of the loss",
    **{
        f"pairs.{column}": " or ".join(other.name for other in SHAPINGS.values() if column in other.columns)
        + " shaping"
        for row in SHAPINGS.values()
        for column in row.columns
    },
    "pushes": "the optimizer's steps taken apart (--metric-every)",
    "steps.grad_norm": "gradient norms of the steps",
    "steps.eval_kl": "held-out pairs (--eval-fraction)",
    "layers": "per-layer gradients",
    "mass": "probe responses (--mass-every)",
    "distributions": "probe responses that are chosen or rejected (--mass-every)",
    "tokens": "token heat maps (--tokens-every)",
}
"""Beginning of a column's name → what has to be recorded for it."""


def missing(trace: Trace, needs: tuple[str, ...]) -> list[str]:
    """Those of `needs` (written "table.column") that have no value in any row of the trace."""
    absent = []
    for need in needs:
        table, column = need.split(".")
        frame: pd.DataFrame = getattr(trace, table)
        if not recorded(frame, column):
            absent.append(need)
    return absent


def remedy(need: str) -> str:
    """What has to be recorded for a column: the longest matching row of REMEDIES, or the column itself."""
    fitting = [start for start in REMEDIES if need.startswith(start)]
    return REMEDIES[max(fitting, key=len)] if fitting else f"column {need}"


def why_absent(trace: Trace, *needs: str) -> str | None:
    """One line for the reader if something is missing, None if everything is there."""
    absent = missing(trace, needs)
    if not absent:
        return None
    table = absent[0].split(".")[0]
    if getattr(trace, table).empty and table in ("pairs", "steps"):
        return f"no rows in the table {table} yet"
    return "not recorded: needs " + "; ".join(dict.fromkeys(remedy(need) for need in absent))
