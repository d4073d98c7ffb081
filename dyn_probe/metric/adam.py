"""Adam and AdamW of torch (Kingma & Ba 2015; Loshchilov & Hutter 2019), with their amsgrad and fused forms."""

from __future__ import annotations

from torch import Tensor

from dyn_probe.metric.applied import AT_ONCE, DECAY_FIRST, AppliedStep, Momentum, Scalar, wide
from dyn_probe.metric.family import Family, StepData, direction, either_decay, exact, learning_rate, steps_done


def metric(data: StepData) -> Tensor:
    """``P = 1/(√v_t/√(1−β2^t) + ε)``; with amsgrad the largest ``v`` so far.

    In half precision the parts are rounded as the optimizer rounds them: its fused form computes in float32.
    """
    squares = data.state["max_exp_avg_sq" if data.group["amsgrad"] else "exp_avg_sq"]
    squares = wide(squares) if data.group["fused"] else squares
    corrected = squares.sqrt().div_((1 - data.group["betas"][1] ** steps_done(data)) ** 0.5)
    return wide(corrected.add_(data.group["eps"])).reciprocal_()


def read(data: StepData) -> AppliedStep:
    """``ω = η(1−β1)/(1−β1^t)``, the momentum in today's metric."""
    beta, sign = data.group["betas"][0], direction(data.group)
    size = exact(learning_rate(data.group) / (1 - beta ** steps_done(data)))
    average = Momentum(data.state["exp_avg"], size, sign * (1 - beta), retain=beta)
    return _step(data, 0.0, average)


def coming(data: StepData) -> AppliedStep:
    """The next step with the metric of the last one: the average holds nothing of the coming gradient."""
    beta, sign = data.group["betas"][0], direction(data.group)
    size = exact(learning_rate(data.group) / (1 - beta ** (steps_done(data) + 1)))
    return _step(data, sign * size * (1 - beta), Momentum(data.state["exp_avg"], size * beta, 0.0))


def _step(data: StepData, direct: Scalar, momentum: Momentum) -> AppliedStep:
    one_rounding = data.group["fused"] and data.parameter.dtype.itemsize < 4
    return either_decay(data, direct, metric(data), momentum, AT_ONCE if one_rounding else DECAY_FIRST)


ADAM = Family(
    "AdamW, Adam (torch)",
    read,
    metric,
    coming,
    metric_formula="1/(√v_t/√(1−β2^t) + ε); amsgrad: the largest v so far",
    weight_formula="η(1−β1)/(1−β1^t)",
    past_formula="η/(1−β1^t) · P∘(m_t − (1−β1)(G+γθ))",
    decay_formula="AdamW λ_d = ηλ; Adam γ = λ",
)
