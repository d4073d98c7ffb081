"""A dozen numbers of the steps since the last log, for the trainer's own logs and so for every ``report_to``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dyn_probe.probe.row_store import Row

PREFIX = "dyn/"
"""Trainers put ``train/`` before it."""
MEDIANS = {
    "grad_norm_chosen": "grad_norm_chosen",
    "grad_norm_rejected": "grad_norm_rejected",
    "grad_cosine": "grad_cosine",
    "pull_chosen": "pull_chosen",
    "pull_rejected": "pull_rejected",
    "delta_chosen": "update_delta_chosen",
    "delta_rejected": "update_delta_rejected",
}
"""Key → the column of ``pairs`` whose median it is."""
CASES = ("case_realised", "case_update", "case_plain")
"""Columns of cases, the most telling first."""


def live_numbers(rows: Sequence[Row]) -> Mapping[str, float]:
    """Key → value; what was not recorded is left out."""
    found: dict[str, float] = {}
    for key, column in MEDIANS.items():
        values = _values(rows, column)
        if len(values):
            found[key] = float(np.median(values))
    measured = [cases for name in CASES if len(cases := _values(rows, name))]
    for cases in measured[:1]:
        found |= {f"case_{case}": float((cases == case).mean()) for case in (1, 2, 3, 4)}
    chosen, rejected = _values(rows, "grad_norm_chosen"), _values(rows, "grad_norm_rejected")
    if len(chosen) and len(chosen) == len(rejected) and bool((rejected > 0).all()):
        found["norm_ratio"] = float(np.median(chosen / rejected))
    return {f"{PREFIX}{key}": value for key, value in found.items()}


def _values(rows: Sequence[Row], column: str) -> np.ndarray:
    """The finite values of a column."""
    found = np.array([row[column] for row in rows if row.get(column) is not None], dtype=float)
    return found[np.isfinite(found)]
