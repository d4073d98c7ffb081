"""SGD of torch, with momentum, dampening and Nesterov's form."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dyn_probe.metric.applied import AT_ONCE, AppliedStep, Momentum, Scalar, wide
from dyn_probe.metric.family import Family, StepData, as_it_stands, direction, exact, learning_rate


def metric(data: StepData) -> None:
    """``P = 1``."""


def always(data: StepData) -> bool:
    """Without a metric, and often without a state, no step has to be waited for."""
    return True


class Note(NamedTuple):
    """From before the step: whether there was a momentum, and the gradient's sum where the step may write into it."""

    had_buffer: bool
    total: Tensor | None


def had_buffer(data: StepData) -> bool:
    """Whether there is a momentum already; the first gradient goes in undampened."""
    return data.state.get("momentum_buffer") is not None


def note(data: StepData) -> Note:
    """Noted when the step begins."""
    may_write = data.group["nesterov"] and not data.group["fused"]
    return Note(had_buffer(data), as_it_stands(data).sum() if may_write else None)


def gradient(data: StepData) -> Tensor:
    """``G``; the foreach form of Nesterov's step adds ``μ·buf`` to ``.grad`` itself, which is taken off again.

    Whether it did shows in the gradient's sum. (The tensor's version counter does not tell for sharded tensors.)
    """
    seen = as_it_stands(data)
    if data.note.total is None or bool(seen.sum() == data.note.total):
        return seen
    return wide(seen) - data.group["momentum"] * wide(data.state["momentum_buffer"])


def read(data: StepData) -> AppliedStep:
    """``ω = ηa``, Nesterov ``η(1+μa)``, with a = 1 at the first step and 1 − dampening after it."""
    group, rate, sign = data.group, exact(learning_rate(data.group)), direction(data.group)
    if not group["momentum"]:
        return _step(data, sign * rate, None)
    share = sign * (1 - group["dampening"] if data.note.had_buffer else 1.0)
    direct = sign * rate if group["nesterov"] else 0.0
    average = Momentum(data.state["momentum_buffer"], _size(data), share, retain=group["momentum"])
    return _step(data, direct, average)


def coming(data: StepData) -> AppliedStep:
    """The next step: exactly, for there is no metric to wait for."""
    group, rate, sign = data.group, exact(learning_rate(data.group)), direction(data.group)
    if not (group["momentum"] and had_buffer(data)):
        weight = sign * rate * (1 + group["momentum"]) if group["nesterov"] else sign * rate
        return _step(data, weight, None)
    direct = sign * _size(data) * (1 - group["dampening"]) + (sign * rate if group["nesterov"] else 0.0)
    return _step(data, direct, Momentum(data.state["momentum_buffer"], _size(data) * group["momentum"], 0.0))


def _size(data: StepData) -> Scalar:
    rate = exact(learning_rate(data.group))
    return rate * data.group["momentum"] if data.group["nesterov"] else rate


def _step(data: StepData, direct: Scalar, momentum: Momentum | None) -> AppliedStep:
    coupled = direction(data.group) * data.group["weight_decay"]
    return AppliedStep(direct, None, momentum, coupled=coupled, stores=AT_ONCE)


SGD = Family(
    "SGD (torch)",
    read,
    metric,
    coming,
    note=note,
    gradient=gradient,
    stepped=always,
    metric_formula="1",
    weight_formula="ηa; Nesterov η(1+μa); a = 1 at the first step, then 1 − dampening",
    past_formula="η(buf_t − a(G+γθ)); Nesterov ημ(…)",
    decay_formula="γ = λ",
)
