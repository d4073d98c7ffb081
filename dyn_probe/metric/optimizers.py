"""The table of optimizers whose step is understood, and the way from an optimizer to its line.

A newcomer owes a file with a ``Family`` and a line here; the smallest example is ``adagrad.py``. The tests run every
line over its options and compare the step that it reads with the change of the stored weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from dyn_probe.errors import BadInput
from dyn_probe.metric.adafactor import ADAFACTOR
from dyn_probe.metric.adafactor_transformers import TRANSFORMERS_ADAFACTOR
from dyn_probe.metric.adagrad import ADAGRAD
from dyn_probe.metric.adam import ADAM
from dyn_probe.metric.adam8bit import ADAM_8BIT
from dyn_probe.metric.family import Family
from dyn_probe.metric.nadam import NADAM
from dyn_probe.metric.rmsprop import RMSPROP
from dyn_probe.metric.sgd import SGD

FAMILIES: Mapping[str, Family] = {
    "torch.optim.adamw.AdamW": ADAM,
    "torch.optim.adam.Adam": ADAM,
    "torch.optim.nadam.NAdam": NADAM,
    "torch.optim.sgd.SGD": SGD,
    "torch.optim.rmsprop.RMSprop": RMSPROP,
    "torch.optim.adagrad.Adagrad": ADAGRAD,
    "torch.optim.Adafactor": ADAFACTOR,
    "transformers.optimization.Adafactor": TRANSFORMERS_ADAFACTOR,
    "bitsandbytes.optim.optimizer.Optimizer2State": ADAM_8BIT,
}
"""Class → its family. By name, so that a package that is not installed or not used is never loaded."""

WRAPPERS = frozenset({"accelerate.optimizer.AcceleratedOptimizer"})
"""Classes that hold the real optimizer in ``.optimizer`` and leave its step as it is."""


def unwrapped(optimizer: Any) -> Optimizer:
    """The optimizer that makes the step, out of a wrapper that is known to leave the step as it is."""
    while _name(type(optimizer)) in WRAPPERS:
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise BadInput(
            f"wanted a torch optimizer, got {type(optimizer).__name__}: pass the optimizer of the training loop"
        )
    return optimizer


def family_of(optimizer: Optimizer) -> tuple[Family | None, str]:
    """The family of an (unwrapped) optimizer, or None and the reason why its step cannot be taken apart."""
    for cls in type(optimizer).__mro__:
        if _name(cls) in FAMILIES:
            family = FAMILIES[_name(cls)]
            reason = _overridden(type(optimizer), cls) or _refused(family, optimizer)
            return (None, reason) if reason else (family, "")
    known, name = ", ".join(dict.fromkeys(family.title for family in FAMILIES.values())), _name(type(optimizer))
    return None, f"no rule for {name}: its step is not known to be linear in the gradient (rules: {known})"


def _overridden(own: type, known: Any) -> str:
    """Why a subclass of a known optimizer is not that optimizer: it makes its own step."""
    if inspect.unwrap(getattr(own, "step")) is inspect.unwrap(known.step):  # noqa: B009
        return ""
    return f"{_name(own)} overrides the step of {known.__name__}"


def _refused(family: Family, optimizer: Optimizer) -> str:
    """The first reason that speaks against one of the groups."""
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            return "differentiable=True: the step is part of a graph"
        if reason := family.refuses(optimizer, group):
            return reason
    return ""


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
