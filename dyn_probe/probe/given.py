"""What a training loop says of a batch, as numbers on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from dyn_probe.errors import BadInput


@dataclass(frozen=True, eq=False)
class Given:
    """What the loop said about a batch; ``[2B]`` numbers, losses and further columns ``[B]``."""

    logps: np.ndarray
    reference: np.ndarray | None = None
    lengths: np.ndarray | None = None
    losses: np.ndarray | None = None
    scale: float = 1.0
    predict: bool = True
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    @staticmethod
    def of(
        logps: Tensor,
        reference: Tensor | None,
        lengths: Tensor | None,
        losses: Tensor | None,
        scale: float,
        predict: bool,
        columns: Mapping[str, Tensor],
    ) -> Given:
        """The same from tensors.

        Raises:
            BadInput: a shape does not fit the log-probabilities'.
        """
        told = {"reference": reference, "lengths": lengths, "losses": losses, **columns}
        given = Given(numbers(logps), scale=scale, predict=predict)
        return given.completed(None, {name: value for name, value in told.items() if value is not None})

    def completed(self, scale: float | None, told: Mapping[str, Tensor]) -> Given:
        """The same with more of it.

        Raises:
            BadInput: a shape does not fit the log-probabilities'.
        """
        rows = len(self.logps)
        for name, size in (("reference", rows), ("lengths", rows), ("losses", rows // 2)):
            if name in told and told[name].shape != (size,):
                raise BadInput(f"probe.pairs needs {name} of shape [{size}]; got {list(told[name].shape)}")
        found = {name: numbers(value) for name, value in told.items()}
        own: dict[str, Any] = {name: found.pop(name) for name in ("reference", "lengths", "losses") if name in found}
        scale = self.scale if scale is None else scale
        return replace(self, **own, scale=scale, columns={**self.columns, **found})


def numbers(values: Tensor) -> np.ndarray:
    """Values as a float64 array on the CPU."""
    return values.detach().double().cpu().numpy()
