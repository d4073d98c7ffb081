"""The trainer's own numbers, computed again from the recorded rows: where they differ, something was misread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dyn_probe.probe.row_store import Row

ROOM, HALF = 1e-3, 2**-6
"""Largest difference relative to the size of what is averaged; of a trainer that averages in half precision."""
UNSURE = 1e-2
"""A margin of log-ratios this near to 0 (nats) may have either sign by rounding: its batch says nothing of accuracy."""


@dataclass(frozen=True)
class Logged:
    """What a trainer's log says of log-probabilities.

    Args:
        beta: factor of its rewards; None where they are something else.
        means: whether they are means per token, not sums.
        reference: whether rewards are differences from a reference.
        room: largest difference relative to the size of what is averaged.
    """

    beta: float | None
    means: bool = False
    reference: bool = True
    room: float = ROOM


Values = Callable[[Row, Logged], float | None]


def _logp(side: str) -> Values:
    def value(row: Row, logged: Logged) -> float | None:
        size = row.get(f"len_{side}") if logged.means else 1
        return None if size is None else row[f"logp_{side}"] / size

    return value


def _reward(side: str) -> Values:
    def value(row: Row, logged: Logged) -> float | None:
        if logged.beta is None or (logged.reference and row.get(f"ref_logp_{side}") is None):
            return None
        if (found := _logp(side)(row, logged)) is None:
            return None
        return logged.beta * (found - row[f"ref_logp_{side}"] if logged.reference else found)

    return value


def _margin(row: Row, logged: Logged) -> float | None:
    chosen, rejected = _reward("chosen")(row, logged), _reward("rejected")(row, logged)
    return None if chosen is None or rejected is None else chosen - rejected


def _accuracy(row: Row, logged: Logged) -> float | None:
    margin = _margin(row, logged)
    return None if margin is None or abs(margin) <= (logged.beta or 1.0) * UNSURE else float(margin > 0)


KEYS: Mapping[str, tuple[Values, str]] = {
    "logps/chosen": (
        _logp("chosen"),
        "another sum over tokens (a mean per token, a mask, a missing end-of-sequence token)",
    ),
    "logps/rejected": (_logp("rejected"), "another sum over tokens"),
    "rewards/chosen": (_reward("chosen"), "another reference, or another β"),
    "rewards/rejected": (_reward("rejected"), "another reference, or another β"),
    "rewards/margins": (_margin, "another reference, or another β"),
    "rewards/accuracies": (_accuracy, "another reference, or another order of chosen and rejected"),
    "loss": (lambda row, logged: row.get("loss"), "a term of the loss beside those of the pairs"),
}
"""What the trainer logs → how a row gives it, and what is likely where the means differ."""


def difference(batches: Sequence[Sequence[Row]], logs: Mapping[str, float], logged: Logged) -> str:
    """The first number that the trainer logged and that its rows do not give, in words; "" where all agree.

    Args:
        batches: rows of every batch since the last log: the trainer averages each batch and then over the batches.
        logs: what it logged, by key.
        logged: what that means.
    """
    for key, (value_of, why) in KEYS.items():
        if key not in logs:
            continue
        values = [[value_of(row, logged) for row in batch] for batch in batches]
        if any(value is None for batch in values for value in batch):
            continue
        means = [float(np.mean(np.array(batch, dtype=float))) for batch in values]
        size = max(1.0, *(abs(float(value)) for batch in values for value in batch if value is not None))
        found = float(np.mean(means))
        if not abs(found - logs[key]) <= logged.room * size:
            return f"{key} is {logs[key]:.6g} in the trainer's log and {found:.6g} by the recorded rows: {why}"
    return ""
