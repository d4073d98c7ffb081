"""Small uses together: those of one kind and one shape wait for each other and are reduced in one batched product.

Reducing a use costs some twenty launches, whatever its size; a model has a hundred uses and more. So where a use's
tensors are small, they are kept until enough of their kind have come, stacked along a new dimension behind the rows,
and taken as one call with ``k`` times as many rows: row ``i`` of the ``j``-th use becomes row ``i k + j``, so that
``G`` groups of rows become ``G k``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dyn_probe.engine.layout import Layout
from dyn_probe.engine.uses import Call

Arrived = tuple[Call, Sequence[Tensor], Sequence[Tensor | None]]
"""A call, what it had saved, and its output-gradients."""


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
    _waiting: dict[Hashable, list[Arrived]] = field(default_factory=dict)
    _numbers: dict[Hashable, int] = field(default_factory=dict)

    def add(self, arrived: Arrived) -> bool:
        """Whether the use is small and of a kind that can wait; else nothing is done."""
        limits, tensors = SMALL.get(self.device, DEVICE), _tensors(arrived)
        size = 0
        for tensor in tensors:
            size += tensor.numel()
        key = _key(arrived, tensors) if size <= limits.use else None
        if key is None:
            return False
        self._waiting.setdefault(key, []).append(arrived)
        self._numbers[key] = self._numbers.get(key, 0) + size
        if sum(self._numbers.values()) > limits.waiting:
            self._reduce(max(self._numbers, key=lambda k: self._numbers[k]))
        return True

    def finish(self) -> None:
        """Reduce all that still wait."""
        for key in list(self._waiting):
            self._reduce(key)

    def _reduce(self, key: Hashable) -> None:
        uses = self._waiting.pop(key)
        del self._numbers[key]
        self.reduce(_stacked(uses) if len(uses) > 1 else uses[0], [call for call, _, _ in uses])


def _tensors(arrived: Arrived) -> list[Tensor]:
    _, saved, grads = arrived
    return [*saved, *_whole(grads)]


def _key(arrived: Arrived, tensors: Sequence[Tensor]) -> Hashable | None:
    """What uses have in common that can be stacked; None for one that is taken alone."""
    call, saved, grads = arrived
    alike = call.kind.alike(call)
    rows = call.layout.rows
    if alike is None or call.layout.places is not None or len(tensors) < len(saved) + len(grads):
        return None
    key = [call.kind.name, alike, call.trained]
    for tensor in tensors:
        shape = tensor.shape
        if len(shape) < 2 or shape[0] != rows:  # rows and positions flattened
            return None
        key += [shape, tensor.dtype]
    return tuple(key)


def _stacked(uses: Sequence[Arrived]) -> Arrived:
    """All of them as one call."""
    first, count = uses[0][0], len(uses)
    layout = Layout(first.layout.rows * count, first.layout.length)
    saved = [torch.stack(found, 1).flatten(0, 1) for found in zip(*(use[1] for use in uses), strict=True)]
    grads = [torch.stack(found, 1).flatten(0, 1) for found in zip(*(_whole(use[2]) for use in uses), strict=True)]
    return replace(first, layout=layout), saved, grads


def _whole(grads: Sequence[Tensor | None]) -> list[Tensor]:
    return [grad for grad in grads if grad is not None]
