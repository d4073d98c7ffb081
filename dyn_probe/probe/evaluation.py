"""Log-probabilities of recorded pairs with the weights as they are: the realised change, and the noise beneath it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.engine.module_copy import eval_mode
from dyn_probe.engine.uses import is_split
from dyn_probe.errors import BadInput
from dyn_probe.pairs import PairBatch, sequence_logps, trimmed
from dyn_probe.probe.given import numbers
from dyn_probe.probe.run_rows import RunRows


class Evaluation:
    """Evaluates pairs in eval mode and without gradients; modes and random state of the model are left as they were.

    Attributes:
        arithmetic: the autocast that the training forward was called under.
        random: whether a recorded forward of the step in progress drew random numbers.
    """

    def __init__(self, model: nn.Module, rows: RunRows) -> None:
        self.model, self.rows = model, rows
        self.arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.random = False

    @property
    def own(self) -> nn.Module:
        """The model without DDP's wrapper, which would wait for the other processes."""
        return self.model.module if isinstance(self.model, nn.parallel.DistributedDataParallel) else self.model

    @torch.no_grad()
    def evaluate(self, batch: PairBatch) -> Tensor:
        """``[2B]`` log-probabilities."""
        with eval_mode(self.model):
            return sequence_logps(self.own, batch)

    def measure_noise(self, step: int, batch: PairBatch) -> None:
        """The largest difference between the batch's log-probabilities together and each pair alone."""
        if is_split(self.model):
            return
        with self.arithmetic():
            together = self.evaluate(batch).unflatten(0, (2, -1))
            alone = [self.evaluate(trimmed(batch.select([pair]))) for pair in range(batch.pairs)]
        floor = (together - torch.stack(alone, 1)).abs().max()
        self.rows.floor = self.rows.step(step)["noise_floor"] = float(floor)

    def realise(self, batch: PairBatch, before: Tensor | None) -> None:
        """Fill ``realised_delta_*`` of the rows that wait for it.

        Raises:
            BadInput: the training forward drew random numbers, and ``before`` is missing.
        """
        if not self.rows.unrealised(batch.ids):
            return
        if before is None and self.random:
            raise BadInput(
                "after_update cannot compare with the training forward's log-probabilities: it drew random numbers "
                "(dropout); call before = probe.evaluate(batch) before optimizer.step(), then "
                "probe.after_update(batch, before)"
            )
        with self.arithmetic() if before is None else nullcontext():
            after = numbers(self.evaluate(batch))
        self.rows.realise(batch.ids, after, None if before is None else numbers(before))
