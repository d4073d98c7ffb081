"""Tensors that are split over processes (FSDP2), put together one at a time; every process must ask."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from dyn_probe.engine.uses import is_split
from dyn_probe.metric.applied import AppliedStep, RankOne


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is split over processes (FSDP2), put together; every process must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def whole_step(step: AppliedStep) -> AppliedStep:
    """The step with its split tensors put together."""
    metric = step.metric
    if isinstance(metric, RankOne):
        metric = RankOne(whole(metric.rows), whole(metric.columns))
    elif metric is not None:
        metric = whole(metric)
    momentum = step.momentum and replace(step.momentum, buffer=whole(step.momentum.buffer))
    return replace(step, metric=metric, momentum=momentum)


def averaged_over(model: nn.Module) -> int:
    """Over how many processes a wrapper averages the gradients: all of them for DDP and FSDP2, else 1."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    wrapped = isinstance(model, nn.parallel.DistributedDataParallel) or is_split(model)
    return torch.distributed.get_world_size() if wrapped else 1
