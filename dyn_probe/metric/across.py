"""Both sides' gradients summed over the processes of a training, none of which may wait in vain for the others.

Where gradients are averaged over processes, a side's gradient is the sum of every process's share. A recording may end
in one process alone (an error of ours must not end the training there), and whoever went on adding would wait for it
forever. So at every step all of them first say whether they still follow it, in one number; only if all do are the sums
taken. The hook that says so is no part of the recording: it goes on after its end, until all have heard of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dyn_probe.metric.optimizers import unwrapped

ENDED = "the recording of another process ended"


class AcrossProcesses:
    """Sums by parameter, taken when the optimizer's step begins, after all other hooks that stand there.

    Args:
        optimizer: whose steps all processes make together.
    """

    def __init__(self, optimizer: Any) -> None:
        self.over = False
        self.sums: Mapping[str, tuple[Tensor, Tensor]] = {}
        self._own: Mapping[str, tuple[Tensor, Tensor]] | None = None
        self._device = unwrapped(optimizer).param_groups[0]["params"][0].device
        self._handle = unwrapped(optimizer).register_step_pre_hook(self._exchange)

    def give(self, own: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """This process's share of the coming step, by parameter, in the same order everywhere."""
        self._own = own

    @torch.no_grad()
    def _exchange(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        own, self._own, self.sums = self._own, None, {}
        ended = torch.tensor(float(own is None), device=self._device)
        torch.distributed.all_reduce(ended, torch.distributed.ReduceOp.MAX)
        if own is None or bool(ended):
            self.over = True
            self._handle.remove()
            return
        for side in (side for sides in own.values() for side in sides):
            torch.distributed.all_reduce(side)
        self.sums = own
