"""Small uses together: those of one kind and one shape wait for each other and are reduced in one batched product.

Reducing a use costs some twenty launches, whatever its size; a model has a hundred uses and more. So where a use's
tensors are small, they are kept until enough of their kind have come, stacked along a new dimension behind the rows,
and taken as one call with ``k`` times as many rows: row ``i`` of the ``j``-th use becomes row ``i k + j``, so that
``G`` groups of rows become ``G k``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dyn_probe.engine.layout import Layout
from dyn_probe.engine.uses import Call

Arrived = tuple[Call, Sequence[Tensor], Sequence[Tensor | None]]
"""A call, what it had saved, and its output-gradients."""
Key = tuple[Any, ...]
"""What uses have in common that can be stacked; first, how many numbers one has."""


@dataclass(frozen=True)
class Limits:
    """In numbers: what a use may have to wait for others, and what all may have that wait."""

    use: int
    waiting: int


SMALL = {"cpu": Limits(1 << 19, 1 << 22)}
"""Where products take their time from a few hundred thousand numbers on; elsewhere (``DEVICE``) from many more."""
DEVICE = Limits(1 << 23, 1 << 26)


@dataclass(eq=False)
class Together:
    """Uses that wait.

    Args:
        device: the kind of device that they lie on.
        reduce: takes the stacked call and the calls that it is made of.
    """

    device: str
    reduce: Callable[[Arrived, Sequence[Call]], None]
    _waiting: dict[Key, list[Arrived]] = field(default_factory=dict)
    _numbers: int = 0

    def add(self, arrived: Arrived) -> bool:
        """Whether the use is small and of a kind that can wait; else nothing is done."""
        limits, key = SMALL.get(self.device, DEVICE), _key(arrived)
        if key is None or key[0] > limits.use:
            return False
        self._waiting.setdefault(key, []).append(arrived)
        self._numbers += key[0]
        if self._numbers > limits.waiting:
            self._reduce(max(self._waiting, key=lambda key: key[0] * len(self._waiting[key])))
        return True

    def finish(self) -> None:
        """Reduce all that still wait."""
        for key in list(self._waiting):
            self._reduce(key)

    def _reduce(self, key: Key) -> None:
        uses = self._waiting.pop(key)
        self._numbers -= key[0] * len(uses)
        self.reduce(_stacked(uses) if len(uses) > 1 else uses[0], [call for call, _, _ in uses])


def _key(arrived: Arrived) -> Key | None:
    """None for a use that is taken alone."""
    call, saved, grads = arrived
    alike, numbers, tensors = call.kind.alike(call), 0, []
    if alike is None or call.layout.places is not None:
        return None
    for tensor in (*saved, *grads):
        if tensor is None:
            return None
        shape = tensor.shape
        if len(shape) < 2 or shape[0] != call.layout.rows:  # rows and positions flattened
            return None
        numbers += shape.numel()
        tensors.append((shape, tensor.dtype))
    return numbers, call.kind.name, alike, call.trained, *tensors


def _stacked(uses: Sequence[Arrived]) -> Arrived:
    """All of them as one call."""
    calls, saved, grads = zip(*uses, strict=True)
    layout = Layout(calls[0].layout.rows * len(uses), calls[0].layout.length)
    return replace(calls[0], layout=layout), _together(saved), _together(grads)


def _together(tensors: Iterable[Sequence[Any]]) -> list[Tensor]:
    """The uses' tensors, those of one place behind each other."""
    return [torch.stack(found, 1).flatten(0, 1) for found in zip(*tensors, strict=True)]
