"""Both sides' gradients summed over the processes of a training, none of which may wait in vain for the others.

Where gradients are averaged over processes (DDP), a side's gradient is the sum of every process's share. A recording
may end in one process alone (an error of ours must not end the training there), and whoever went on adding would wait
for it forever. So at every step all of them first say in one number whether they still follow it; only if all do are
the sums taken. The hook that says so is no part of the recording: where that ends, it takes part in one step more, so
that all hear of it, and does nothing from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dyn_probe.metric.optimizers import unwrapped

Sides = tuple[Tensor, Tensor]
ELSEWHERE = "the recording of another process ended"
UNFOLLOWED = "a step was made without recorded rows of this process"


class AcrossProcesses:
    """Sums by parameter, taken when the optimizer's step begins.

    Args:
        optimizer: whose steps all processes make together.

    ``over`` says why no sums are taken any more; "" where they are.
    """

    def __init__(self, optimizer: Any) -> None:
        self.over = ""
        self._sums: dict[str, Sides] = {}
        self._own: dict[str, Sides] | None = None
        self._handle = unwrapped(optimizer).register_step_pre_hook(self._exchange)

    def give(self, own: Mapping[str, Sides]) -> None:
        """This process's share of the coming step: of every trained parameter, in the same order everywhere."""
        self._own = None if self.over else dict(own)

    def take(self, name: str) -> Sides:
        """The sums of one parameter, once."""
        return self._sums.pop(name)

    def drop(self) -> None:
        """Forget what was given and summed."""
        self._own, self._sums = None, {}

    def close(self) -> None:
        """Nothing is given any more. The hook leaves if all know that; else it is one that does nothing after the next
        step (torch does not bear that a hook removes itself)."""
        self.drop()
        if self.over:
            self._handle.remove()

    @torch.no_grad()
    def _exchange(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        own = self._own
        self.drop()
        if self.over or not torch.distributed.is_initialized():
            return
        device = next(p.device for group in optimizer.param_groups for p in group["params"])
        ended = torch.tensor(float(own is None), device=device)
        torch.distributed.all_reduce(ended, torch.distributed.ReduceOp.MAX)
        if own is None or bool(ended):
            self.over = UNFOLLOWED if own is None else ELSEWHERE
            return
        for side in (side for sides in own.values() for side in sides):
            torch.distributed.all_reduce(side)
        self._sums = own
