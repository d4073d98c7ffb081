"""Adagrad of torch (Duchi et al. 2011)."""

from __future__ import annotations

from torch import Tensor

from dyn_probe.metric.applied import AT_ONCE, AppliedStep, Scalar, wide
from dyn_probe.metric.family import Family, StepData, direction, exact, learning_rate, steps_done


def metric(data: StepData) -> Tensor:
    """``P = 1/(√sum + ε)``."""
    squares = wide(data.state["sum"]) if data.group["fused"] else data.state["sum"]
    return wide(squares.sqrt().add_(data.group["eps"])).reciprocal_()


def read(data: StepData) -> AppliedStep:
    """``ω = η/(1 + (t−1)·lr_decay)``."""
    return _step(data, steps_done(data) - 1)


def coming(data: StepData) -> AppliedStep:
    """The next step with the metric of the last one."""
    return _step(data, steps_done(data))


def stepped(data: StepData) -> bool:
    """The state is there before the first step, with a count of 0."""
    return bool(data.state) and bool(data.state["step"] > 0)


def _step(data: StepData, earlier: Scalar) -> AppliedStep:
    sign = direction(data.group)
    weight = exact(learning_rate(data.group) / (1 + earlier * data.group["lr_decay"]))
    return AppliedStep(sign * weight, metric(data), coupled=sign * data.group["weight_decay"], stores=AT_ONCE)


ADAGRAD = Family(
    "Adagrad (torch)",
    read,
    metric,
    coming,
    stepped=stepped,
    metric_formula="1/(√sum + ε)",
    weight_formula="η/(1+(t−1)·lr_decay)",
    past_formula="0",
    decay_formula="γ = λ",
)
