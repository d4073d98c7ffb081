"""The trainer's own numbers, computed again from the recorded rows: where they differ, something was misread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dyn_probe.probe.row_store import Row

ROOM = 1e-3
"""Largest difference relative to the size of what is averaged."""
UNSURE = 1e-2
"""A margin of log-ratios this near to 0 (nats) may have either sign by rounding: its batch says nothing of accuracy."""

Values = Callable[[Row, float], float | None]


def _ratio(row: Row, side: str) -> float | None:
    reference = row.get(f"ref_logp_{side}")
    return None if reference is None else row[f"logp_{side}"] - reference


def _reward(side: str) -> Values:
    return lambda row, beta: None if (ratio := _ratio(row, side)) is None else beta * ratio


def _margin(row: Row, beta: float) -> float | None:
    chosen, rejected = _ratio(row, "chosen"), _ratio(row, "rejected")
    return None if chosen is None or rejected is None else beta * (chosen - rejected)


def _accuracy(row: Row, beta: float) -> float | None:
    margin = _margin(row, beta)
    return None if margin is None or abs(margin) <= beta * UNSURE else float(margin > 0)


KEYS: Mapping[str, tuple[Values, str]] = {
    "logps/chosen": (
        lambda row, beta: row["logp_chosen"],
        "another sum over tokens (a mean per token, a mask, a missing end-of-sequence token)",
    ),
    "logps/rejected": (lambda row, beta: row["logp_rejected"], "another sum over tokens"),
    "rewards/chosen": (_reward("chosen"), "another reference, or another β"),
    "rewards/rejected": (_reward("rejected"), "another reference, or another β"),
    "rewards/margins": (_margin, "another reference, or another β"),
    "rewards/accuracies": (_accuracy, "another reference, or another order of chosen and rejected"),
    "loss": (lambda row, beta: row.get("loss"), "a term of the loss beside those of the pairs"),
}
"""What the trainer logs → how a row gives it, and what is likely where the means differ."""


def difference(batches: Sequence[Sequence[Row]], logged: Mapping[str, float], beta: float) -> str:
    """The first number that the trainer logged and that its rows do not give, in words; "" where all agree.

    Args:
        batches: rows of every batch since the last log: the trainer averages each batch and then over the batches.
        logged: by key.
    """
    for key, (value_of, why) in KEYS.items():
        if key not in logged:
            continue
        values = [[value_of(row, beta) for row in batch] for batch in batches]
        if any(value is None for batch in values for value in batch):
            continue
        means = [float(np.mean(np.array(batch, dtype=float))) for batch in values]
        size = max(1.0, *(abs(float(value)) for batch in values for value in batch if value is not None))
        found = float(np.mean(means))
        if not abs(found - logged[key]) <= ROOM * size:
            return f"{key} is {logged[key]:.6g} in the trainer's log and {found:.6g} by the recorded rows: {why}"
    return ""
