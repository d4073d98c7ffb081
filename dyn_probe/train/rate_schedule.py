"""Optimizers and learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from dyn_probe.train.options.config import RunConfig


def make_optimizer(config: RunConfig, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """The configured optimizer over the trained parameters."""
    trained = [p for p in parameters if p.requires_grad]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=lr, weight_decay=config.weight_decay)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(trained, lr=lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(trained, lr=lr, weight_decay=config.weight_decay)


def learning_rate(config: RunConfig, step: int) -> float:
    """η of step k of n, counted from 0, with w steps of warm-up.

    In the warm-up (k+1)/(w+1) of the peak, so that even the first step is above 0; then, as in the schedules of
    transformers, the peak (constant), (n−k)/(n−w) of it (linear), or ½(1 + cos π(k−w)/(n−w)) of it (cosine). The
    last step is above 0.
    """
    assert config.lr is not None, "with_model_defaults fills it in"
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.schedule == "linear":
        return config.lr * (1 - done)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr


TIMES = "times"
"""Key of a parameter group: its learning rate as a multiple of the run's."""


def add_module(optimizer: torch.optim.Optimizer, module: nn.Module, rate: float) -> None:
    """Train a module too, with a peak learning rate of its own and the schedule of the others."""
    own = optimizer.param_groups[0]["lr"]
    optimizer.add_param_group({"params": list(module.parameters()), "lr": rate, TIMES: rate / own if own else 1.0})


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate, or its multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(TIMES, 1.0)
