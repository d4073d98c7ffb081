"""RMSprop of torch, plain, centred and with momentum."""

from __future__ import annotations

from torch import Tensor

from dyn_probe.metric.applied import AT_ONCE, AppliedStep, Momentum, wide
from dyn_probe.metric.family import Family, StepData, direction, exact, learning_rate


def metric(data: StepData) -> Tensor:
    """``P = 1/(√v_t + ε)``; centred ``1/(√(v_t − ḡ_t²) + ε)``."""
    squares, mean = data.state["square_avg"], data.state.get("grad_avg")
    root = squares.addcmul(mean, mean, value=-1).sqrt_() if data.group["centered"] else squares.sqrt()
    return wide(root.add_(data.group["eps"])).reciprocal_()


def read(data: StepData) -> AppliedStep:
    """``ω = η``. Every gradient enters the momentum through the metric of its own step."""
    rate, sign = exact(learning_rate(data.group)), direction(data.group)
    coupled = sign * data.group["weight_decay"]
    if not data.group["momentum"]:
        return AppliedStep(sign * rate, metric(data), coupled=coupled, stores=AT_ONCE)
    buffer = Momentum(data.state["momentum_buffer"], rate, sign, in_metric=False, retain=data.group["momentum"])
    return AppliedStep(0.0, metric(data), buffer, coupled=coupled, stores=AT_ONCE)


def coming(data: StepData) -> AppliedStep:
    """The next step with the metric of the last one."""
    rate, group = exact(learning_rate(data.group)), data.group
    buffer = data.state["momentum_buffer"] if group["momentum"] else None
    momentum = None if buffer is None else Momentum(buffer, rate * group["momentum"], 0.0, in_metric=False)
    sign = direction(group)
    return AppliedStep(sign * rate, metric(data), momentum, coupled=sign * group["weight_decay"], stores=AT_ONCE)


RMSPROP = Family(
    "RMSprop (torch)",
    read,
    metric,
    coming,
    metric_formula="1/(√v_t + ε); centred 1/(√(v_t − ḡ_t²) + ε)",
    weight_formula="η",
    past_formula="0; with momentum η(buf_t − P∘(G+γθ)), not through today's P",
    decay_formula="γ = λ",
)
