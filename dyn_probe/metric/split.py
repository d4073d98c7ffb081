"""The optimizer's momentum kept in two: what chosen and what rejected gradients put into it, over all steps.

``G = G^w + G^l + G_other`` and every momentum is linear in the gradients, so ``m = m^w + m^l + …`` with the same rule
for each part. It needs the weight gradient of the chosen and of the rejected rows at every step, and two buffers of
the model's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from dyn_probe.engine.held import Held
from dyn_probe.metric.applied import AppliedStep, wide

SIDES = ("chosen", "rejected")
EVERYTHING = slice(None)


def side_gradients(batches: Sequence[tuple[Held, Tensor]], name: str, parameter: Tensor) -> tuple[Tensor, Tensor]:
    """``G^w, G^l`` of one parameter, before κ: ``Σ c_i g_i`` over the chosen and over the rejected rows of all
    micro-batches.

    Args:
        batches: ``(held, c [2B])`` of each micro-batch.
    """
    kind, found = wide(torch.empty(0, dtype=parameter.dtype)).dtype, []
    for side in range(2):
        total: Tensor | None = None
        for held, coefficients in batches:
            pairs = len(coefficients) // 2
            rows = slice(side * pairs, (side + 1) * pairs)
            total = held.weighted(name, coefficients, parameter.shape, rows, total)
        if total is None:
            total = torch.zeros(parameter.shape, dtype=kind, device=parameter.device)
        found.append(total.to(kind))
    return found[0], found[1]


FRESH = 1e-3
"""Largest ``|p|`` of a parameter's first followed step, relative to its own part, that is rounding and no past."""
UNKNOWN = "the optimizer had a momentum before its steps were followed, so it cannot be attributed to either side"


class SplitMomentum:
    """Both sides' momentum, by parameter; ``update`` at every step of the optimizer, from its first on.

    ``broken`` says why the two sides can no longer be separated; what they contribute is NaN from then on.
    """

    def __init__(self) -> None:
        self.broken = ""
        self._buffers: dict[str, list[Tensor]] = {}
        self._fresh: dict[str, list[Tensor]] = {}
        self._followed: set[str] = set()

    def new(self, names: Iterable[str]) -> list[str]:
        """Those of some parameters that no step was followed of."""
        return [name for name in names if name not in self._followed]

    def follows_from_the_start(self, name: str, step: AppliedStep, gradient: Tensor, before: Tensor) -> None:
        """See that the momentum holds nothing but what was followed: before a parameter's first ``update``.

        Args:
            gradient: ``G`` as the optimizer saw it.
            before: the weights before the step.
        """
        past = step.past(gradient, before) if name not in self._followed else None
        if past is not None:
            own = step.weight * step.times_metric(gradient)
            if float(past.abs().max()) > FRESH * float(own.abs().max()):
                self.broken = UNKNOWN

    def update(self, name: str, step: AppliedStep, gradients: tuple[Tensor, Tensor], moves: bool = True) -> None:
        """Take one parameter's step.

        Args:
            gradients: ``G^w, G^l`` as the optimizer saw them.
            moves: whether ``moves`` will be asked; the gradients are kept until ``forget`` then.
        """
        self._followed.add(name)
        inside = [g if step.momentum is None or step.momentum.in_metric else step.times_metric(g) for g in gradients]
        if step.momentum is not None:
            old = self._buffers.get(name, [torch.zeros_like(g) for g in inside])
            share, retain = step.momentum.share, step.momentum.retain
            self._buffers[name] = [(retain * b).add_(share * g) for b, g in zip(old, inside, strict=True)]
        if moves:
            self._fresh[name] = list(gradients)

    def forget(self, name: str) -> None:
        """Let go of one parameter's gradients of this step."""
        self._fresh.pop(name, None)

    def moves(self, name: str, step: AppliedStep, entries: slice = EVERYTHING) -> tuple[Tensor, Tensor]:
        """What all chosen and all rejected gradients, of this step and of those before, contribute to ``Δθ``.

        Args:
            entries: of the parameter's first dimension; the step is theirs.
        """
        fresh = [self._entries(gradient, entries) for gradient in self._fresh[name]]
        if self.broken:
            nothing = torch.full_like(fresh[0], float("nan"))
            return nothing, nothing
        found = []
        for side in range(2):
            moved = -step.direct * step.times_metric(fresh[side])
            if step.momentum is not None:
                buffer = self._entries(self._buffers[name][side], entries)
                moved = moved - step.momentum.weight * (
                    step.times_metric(buffer) if step.momentum.in_metric else buffer
                )
            found.append(moved)
        return found[0], found[1]

    @staticmethod
    def _entries(tensor: Tensor, entries: slice) -> Tensor:
        return tensor if entries == EVERYTHING else tensor[entries]

    def state(self) -> Mapping[str, list[Tensor]]:
        """The buffers, for a checkpoint."""
        return self._buffers

    def load(self, state: Mapping[str, list[Tensor]]) -> None:
        """Put a checkpoint's buffers back."""
        self._buffers = {name: list(buffers) for name, buffers in state.items()}
        self._followed = set(self._buffers)
