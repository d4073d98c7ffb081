"""What a training loop says of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from dyn_probe.engine.fetching import fetching
from dyn_probe.errors import BadInput

SIDES = ("reference", "lengths")
"""What is told of every response, ``[2B]``; all else of every pair, ``[B]``."""


@dataclass(frozen=True, eq=False)
class Given:
    """What the loop said about a batch; ``[2B]`` numbers, losses and further columns ``[B]``."""

    logps: np.ndarray
    reference: np.ndarray | None = None
    lengths: np.ndarray | None = None
    losses: np.ndarray | None = None
    scale: float = 1.0
    predict: bool = True
    alone: bool = True
    columns: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Told:
    """The same as it was said: tensors on whatever device they are on, which nothing waits for.

    Args:
        told: ``reference``, ``lengths``, ``losses`` and further columns.
    """

    logps: Tensor
    told: Mapping[str, Tensor]
    scale: float | Tensor = 1.0
    predict: bool = True
    alone: bool = True

    @staticmethod
    def of(
        logps: Tensor,
        reference: Tensor | None,
        lengths: Tensor | None,
        losses: Tensor | None,
        scale: float,
        predict: bool,
        columns: Mapping[str, Tensor],
        alone: bool = True,
    ) -> Told:
        """What the loop says before the backward.

        Raises:
            BadInput: a shape does not fit the log-probabilities'.
        """
        told = {"reference": reference, "lengths": lengths, "losses": losses, **columns}
        found = {name: value for name, value in told.items() if value is not None}
        return Told(logps.detach(), {}, scale, predict, alone).completed(None, found)

    @property
    def pairs(self) -> int:
        """``B``."""
        return len(self.logps) // 2

    def completed(self, scale: float | Tensor | None, told: Mapping[str, Tensor]) -> Told:
        """The same with more of it.

        Raises:
            BadInput: a shape does not fit the log-probabilities'.
        """
        rows = len(self.logps)
        for name, size in (("reference", rows), ("lengths", rows), ("losses", rows // 2)):
            if name in told and told[name].shape != (size,):
                raise BadInput(f"probe.pairs needs {name} of shape [{size}]; got {list(told[name].shape)}")
        found = {name: value.detach().clone() for name, value in told.items()}
        return replace(self, told={**self.told, **found}, scale=self.scale if scale is None else scale)

    def fetching(self) -> Callable[[], Given]:
        """Start fetching it; what this returns waits for it."""
        scale = [self.scale.detach()] if isinstance(self.scale, Tensor) else []
        fetched = fetching([*scale, self.logps, *self.told.values()])

        def given() -> Given:
            values = list(map(numbers, fetched()))
            factor = float(values.pop(0)) if scale else self.scale
            logps, *values = values
            found = dict(zip(self.told, values, strict=True))
            own = {name: found.pop(name) for name in (*SIDES, "losses") if name in found}
            return Given(logps, **own, scale=float(factor), predict=self.predict, alone=self.alone, columns=found)

        return given


def numbers(values: Tensor) -> np.ndarray:
    """Values as a float64 array on the CPU."""
    return values.detach().double().cpu().numpy()
