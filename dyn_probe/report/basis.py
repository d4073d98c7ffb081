"""On which basis pairs are put into cases: what happened, the optimizer's own step, or a plain step on the pair alone.

One list, one share, one comparison uses one basis, and says which: *realised* where all rows that are compared have it,
else *update*, else *plain*. A run that measures on a schedule is compared at the steps that were measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe import entanglement
from dyn_probe.report.frames import Floats, Mask, finite, numbers, recorded, tenths

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

__all__ = ["BASES", "Basis", "basis_of", "basis_of_list", "case_of", "completed"]


@dataclass(frozen=True)
class Basis:
    """One basis: its column of cases, the changes whose signs it takes, and how it is spoken of."""

    name: str
    deltas: str
    title: str
    words: str
    formula: str
    warning: str = ""

    @property
    def column(self) -> str:
        """The column of `pairs` with the cases."""
        return f"case_{self.name}"


BASES: dict[str, Basis] = {
    "realised": Basis(
        "realised",
        "realised_delta",
        "Realised",
        "by what happened",
        "case by the signs of the realised Δa and Δb: log-probability after the optimizer's update minus before it",
    ),
    "update": Basis(
        "update",
        "update_delta",
        "Along the optimizer's step",
        "along the optimizer's own step",
        "case by the signs of Δa = ⟨g_w, Δθ⟩ and Δb = ⟨g_l, Δθ⟩ with the optimizer's own step Δθ",
    ),
    "plain": Basis(
        "plain",
        "predicted_delta",
        "Predicted, each pair alone",
        "by a plain gradient step on the pair alone",
        "case by the signs of Δa = η(d_w‖g_w‖² − d_l⟨g_w,g_l⟩) and Δb = η(d_w⟨g_w,g_l⟩ − d_l‖g_l‖²), "
        "one plain gradient step on the pair alone",
        "This is a plain gradient step on the pair alone, and not what the optimizer did; record with --realised or "
        "--metric-every to see that.",
    ),
}
"""Name → basis, from what happened to what is only predicted."""


def completed(trace: Trace) -> pd.DataFrame:
    """The table `pairs` with the cases of every basis: traces older than a column have them from the changes' signs."""
    floor = float(np.max(finite(numbers(trace.steps, "noise_floor")), initial=0.0))
    lacking = {
        basis.column: _signs(trace.pairs, basis.deltas, floor if basis.name == "realised" else 0.0)
        for basis in BASES.values()
        if basis.name != "plain" and not recorded(trace.pairs, basis.column)
    }
    return trace.pairs.assign(**lacking)


def _signs(pairs: pd.DataFrame, deltas: str, floor: float) -> Floats:
    """Case by the signs of both changes [rows]; NaN where one is unknown or no larger than the floor."""
    up, down = (numbers(pairs, f"{deltas}_{side}") for side in ("chosen", "rejected"))
    case = entanglement.cases(up, down).astype(np.float64)
    clear = (np.minimum(np.abs(up), np.abs(down)) > floor) if floor else np.ones(len(pairs), bool)
    return np.where((case > 0) & clear, case, np.nan)


def case_of(pairs: pd.DataFrame, basis: str) -> Floats:
    """The cases of a completed table by one basis [rows], NaN where there is none."""
    return numbers(pairs, BASES[basis].column)


def _has(pairs: pd.DataFrame, basis: Basis) -> Mask:
    """Rows that have the basis; a change within the noise floor was measured too, though it is no case."""
    changes = [numbers(pairs, f"{basis.deltas}_{side}") for side in ("chosen", "rejected")]
    return np.isfinite(numbers(pairs, basis.column)) | np.asarray(np.isfinite(changes).all(0))


def basis_of(*runs: pd.DataFrame) -> str:
    """Name of the basis on which the rows of one or several runs are compared over their steps.

    A run has it where every row of its measured steps has it, and its first and last tenth hold such steps; a last step
    that was interrupted may lack it.
    """
    return next((name for name, basis in BASES.items() if all(_covers(pairs, basis) for pairs in runs)), "plain")


def basis_of_list(*lists: pd.DataFrame) -> str:
    """Name of the basis of lists with a row per pair: every row must have it."""
    return next(
        (name for name, basis in BASES.items() if all(len(rows) and _has(rows, basis).all() for rows in lists)), "plain"
    )


def _covers(pairs: pd.DataFrame, basis: Basis) -> bool:
    mask = _has(pairs, basis)
    if not mask.any():
        return False
    steps = numbers(pairs, "step")
    by_step = pd.Series(mask).groupby(steps)
    partly = by_step.any() & ~by_step.all()
    if partly.drop(steps.max()).any():
        return False
    parts = tenths(pairs)
    return bool(mask.all()) if parts is None else bool(mask[parts.first].any() and mask[parts.last].any())
