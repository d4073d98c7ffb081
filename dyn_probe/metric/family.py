"""What a line of the table of optimizers says, and what its functions are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dyn_probe.metric.applied import AppliedStep, Metric, Momentum, Scalar, Stores


@dataclass(frozen=True)
class StepData:
    """One parameter at an optimizer's step.

    Args:
        optimizer: the optimizer itself, out of any wrapper.
        parameter: the parameter, as it stands.
        group: the options of its parameter group.
        state: the optimizer's state for it, as it stands.
        gradient: ``.grad``, as it stands.
        note: what the family noted when the step began.
    """

    optimizer: Optimizer
    parameter: Tensor
    group: Mapping[str, Any]
    state: Mapping[str, Any]
    gradient: Tensor | None = None
    note: Any = None


def nothing(data: StepData) -> None:
    """The note of a family that needs nothing from before the step."""


def as_it_stands(data: StepData) -> Tensor:
    """``.grad`` after the step: what the optimizer saw, for every family that does not write into it."""
    assert data.gradient is not None, "asked for the gradient of a parameter that has none"
    return data.gradient


def has_state(data: StepData) -> bool:
    """Whether a step has been made, for every family that makes its state in its first step."""
    return bool(data.state)


def accepts(optimizer: Optimizer, group: Mapping[str, Any]) -> None:
    """No reason to refuse a parameter group."""


@dataclass(frozen=True)
class Family:
    """A family of optimizers whose step has the form of ``AppliedStep``.

    Args:
        title: the classes, in words.
        read: the step as it was applied, from the state after it.
        metric: ``P`` from the state as it stands (a step has been made).
        coming: the coming step with the ``P`` of the last one, from the state before it; None where its weight depends
            on the coming gradient.
        note: what has to be kept from before the step; as small as it can be.
        gradient: the gradient that the optimizer saw.
        refuses: why a parameter group's options are not covered, or None.
        stepped: whether the state is that of a step that has been made.
        metric_formula, weight_formula, past_formula, decay_formula: for the docs.
    """

    title: str
    read: Callable[[StepData], AppliedStep]
    metric: Callable[[StepData], Metric]
    coming: Callable[[StepData], AppliedStep] | None
    metric_formula: str
    weight_formula: str
    past_formula: str
    decay_formula: str
    note: Callable[[StepData], Any] = nothing
    gradient: Callable[[StepData], Tensor] = as_it_stands
    refuses: Callable[[Optimizer, Mapping[str, Any]], str | None] = accepts
    stepped: Callable[[StepData], bool] = has_state


def learning_rate(group: Mapping[str, Any]) -> Scalar:
    """``η`` of the group. A tensor keeps its type: what the optimizer computes with it is rounded to that."""
    rate = group["lr"]
    if not isinstance(rate, Tensor):
        return rate
    return exact(rate.detach().squeeze()) if group.get("fused") else rate.detach().squeeze()


def exact(scalar: Scalar) -> Scalar:
    """A number that the optimizer has at last, in float64 from here on (which MPS does not have)."""
    if not isinstance(scalar, Tensor):
        return scalar
    return scalar.item() if scalar.device.type == "mps" else scalar.double()


def steps_done(data: StepData) -> Scalar:
    """``t``, the number of steps in the state; a tensor on the device where the optimizer keeps it there."""
    step = data.state["step"]
    if not isinstance(step, Tensor):
        return float(step)
    if step.device.type == "cpu":
        return step.item()
    return exact(step) if data.group.get("fused") else step


def direction(group: Mapping[str, Any]) -> float:
    """−1 for an optimizer that maximises (it turns the gradient's sign, not the decay's), else 1."""
    return -1.0 if group.get("maximize") else 1.0


def stored_decay(rate: Scalar, data: StepData) -> Scalar:
    """``λ_d`` of an optimizer that multiplies the weights by ``1 − λ_d``, a factor rounded to the type it computes in.

    In float32 the factors below 1 lie 6e-8 apart: a decay of 1e-7 acts as 1.2e-7, one below 3e-8 not at all. The
    foreach form on a CPU rounds the factor to the weights' own type. Only the fused kernel on CUDA has no such factor.
    """
    kind, device = data.parameter.dtype, data.parameter.device.type
    if data.group.get("fused") and device == "cuda":
        return exact(rate)
    own = kind == torch.float64 or (data.group.get("foreach") and device == "cpu")
    stored = kind if own else torch.float32
    if not isinstance(rate, Tensor):
        return _stored(rate, stored)
    decay = 1 - (1 - rate).to(stored).double()
    return decay.item() if decay.device.type == "cpu" else decay


@lru_cache(maxsize=64)
def _stored(rate: float, kind: torch.dtype) -> float:
    """The same of a number: a model's parameters have few rates, and every one of them is asked in every step."""
    return (1 - torch.tensor(1 - rate, dtype=torch.float64).to(kind).double()).item()


def either_decay(data: StepData, direct: Scalar, metric: Metric, momentum: Momentum, stores: Stores) -> AppliedStep:
    """A step with the group's decay: decoupled where the group says so, else coupled."""
    group, rate = data.group, data.group["weight_decay"]
    if group.get("decoupled_weight_decay", False):
        decay = stored_decay(learning_rate(group) * rate, data)
        return AppliedStep(direct, metric, momentum, decay=decay, stores=stores)
    return AppliedStep(direct, metric, momentum, coupled=direction(group) * rate, stores=stores)
