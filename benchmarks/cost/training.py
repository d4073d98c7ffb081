"""Training of one model on one batch, step by step: what every kind of step is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cost.cells import Cell
from cost.shapes import batch_of, made
from dyn_probe import sequence_logps

RATE = 1e-6


class Training:
    """A step is forward, backward and AdamW, on the same pairs each time."""

    def __init__(self, cell: Cell, device: str) -> None:
        self.device = device
        self.model = made(cell.shape, cell.trained, cell.precision, device)
        self.batch = batch_of(cell.pairs, cell.length, self.model.config.vocab_size, device)
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE, weight_decay=0.0)
        self.number = 0

    @property
    def trained(self) -> list[Any]:
        """The trained parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def hold(self, still: bool) -> None:
        """Steps leave the weights as they are, bit by bit (or move them again)."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0 if still else RATE

    def logps(self) -> Tensor:
        """``[2B]`` (nats)."""
        return sequence_logps(self.model, self.batch)

    def loss(self, logps: Tensor) -> Tensor:
        """DPO's, the reference being the policy itself."""
        ratio = logps - logps.detach()
        return -F.logsigmoid(0.1 * (ratio[: self.batch.pairs] - ratio[self.batch.pairs :])).mean()

    def step(self, backward: Callable[[], object]) -> None:
        """One step, whose gradients ``backward`` leaves in the parameters."""
        self.number += 1
        backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
