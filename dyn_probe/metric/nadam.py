"""NAdam of torch (Dozat 2016), with coupled and decoupled decay."""

from __future__ import annotations

from torch import Tensor

from dyn_probe.metric.applied import ONE_BY_ONE, AppliedStep, Momentum, Scalar, wide
from dyn_probe.metric.family import Family, StepData, direction, either_decay, exact, learning_rate, steps_done


def metric(data: StepData) -> Tensor:
    """``P = 1/(√(v_t/(1−β2^t)) + ε)``."""
    corrected = (data.state["exp_avg_sq"] / (1 - data.group["betas"][1] ** steps_done(data))).sqrt_()
    return wide(corrected.add_(data.group["eps"])).reciprocal_()


def momentum_at(data: StepData, step: Scalar) -> Scalar:
    """``μ_t = β1 (1 − ½·0.96^(t·momentum_decay))``."""
    return data.group["betas"][0] * (1 - 0.5 * 0.96 ** (step * data.group["momentum_decay"]))


def read(data: StepData) -> AppliedStep:
    """``c₁ = η(1−μ_t)/(1−Πμ)`` of the gradient beside ``c₂ = ημ_{t+1}/(1−Πμ·μ_{t+1})`` of the average."""
    direct, size = _weights(data, steps_done(data), _product(data))
    beta = data.group["betas"][0]
    share = direction(data.group) * (1 - beta)
    average = Momentum(data.state["exp_avg"], size, share, retain=beta)
    return either_decay(data, direct, metric(data), average, ONE_BY_ONE)


def coming(data: StepData) -> AppliedStep:
    """The next step with the metric of the last one."""
    beta, step = data.group["betas"][0], steps_done(data) + 1
    direct, size = _weights(data, step, _product(data) * momentum_at(data, step))
    direct = direct + direction(data.group) * size * (1 - beta)
    return either_decay(data, direct, metric(data), Momentum(data.state["exp_avg"], size * beta, 0.0), ONE_BY_ONE)


def _weights(data: StepData, step: Scalar, product: Scalar) -> tuple[Scalar, Scalar]:
    rate, following = learning_rate(data.group), momentum_at(data, step + 1)
    direct = direction(data.group) * rate * (1 - momentum_at(data, step)) / (1 - product)
    return exact(direct), exact(rate * following / (1 - product * following))


def _product(data: StepData) -> Scalar:
    product = data.state["mu_product"]
    return product.item() if product.device.type == "cpu" else product


NADAM = Family(
    "NAdam (torch)",
    read,
    metric,
    coming,
    metric_formula="1/(√(v_t/(1−β2^t)) + ε)",
    weight_formula="c₁ + c₂(1−β1), c₁ = η(1−μ_t)/(1−Πμ), c₂ = ημ_{t+1}/(1−Πμ·μ_{t+1})",
    past_formula="c₂ P∘(m_t − (1−β1)(G+γθ))",
    decay_formula="γ = λ; λ_d = ηλ where decoupled",
)
