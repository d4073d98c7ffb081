"""Adam and AdamW of bitsandbytes, with 8-bit and with 32-bit moments (Dettmers et al. 2022).

The step applies the moments before they are quantised again, so they are computed once more from the quantised ones of
before the step and the gradient. Its decay is decoupled in both classes, and on CUDA it comes last: ``(1 − λ_d)`` then
multiplies the rest of the step too.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dyn_probe.metric.applied import AT_ONCE, DECAY_FIRST, DECAY_LAST, AppliedStep, Momentum, wide
from dyn_probe.metric.family import Family, StepData, as_it_stands, stored_decay

BLOCK = 256
"""Entries that share one scale."""

Quantised = tuple[Tensor, Tensor, Tensor, Tensor]


def moments_before(data: StepData) -> Quantised | None:
    """Noted when the step begins: the quantised moments and their scales (2 bytes an entry); None for 32-bit ones."""
    state = data.state
    if not state or state["state1"].dtype != torch.uint8:
        return None
    return tuple(state[name].clone() for name in ("state1", "absmax1", "state2", "absmax2"))  # type: ignore[return-value]


def metric(data: StepData) -> Tensor:
    """``P = 1/(√v/√(1−β2^t) + ε)`` from the moments as the state keeps them."""
    return _metric(data, _kept(data, "2"))


def read(data: StepData) -> AppliedStep:
    """As Adam's, with the moments that were applied."""
    config = _config(data)
    first, second = _applied(data, config["betas"])
    size = config["lr"] / (1 - config["betas"][0] ** data.state["step"])
    average = Momentum(first, size, 1 - config["betas"][0], retain=config["betas"][0])
    return _step(data, config, _metric(data, second), average)


def coming(data: StepData) -> AppliedStep:
    """The next step with the metric of the last one."""
    config, beta = _config(data), _config(data)["betas"][0]
    size = config["lr"] / (1 - beta ** (data.state["step"] + 1))
    average = Momentum(_kept(data, "1"), size * beta, 0.0)
    return _step(data, config, metric(data), average, direct=size * (1 - beta))


def refuses(optimizer: Optimizer, group: Mapping[str, Any]) -> str | None:
    """Other rules that share the class, and options that make the step something else."""
    shared: Any = optimizer
    own: Any = type(optimizer)
    base: Any = next(cls for cls in own.__mro__ if cls.__qualname__ == "Optimizer2State")
    if shared.optimizer_name != "adam" or inspect.unwrap(own.update_step) is not inspect.unwrap(base.update_step):
        return f"bitsandbytes' {own.__name__} is not Adam"
    if shared.args.max_unorm > 0 or shared.args.skip_zeros:
        return "bitsandbytes' max_unorm and skip_zeros are not covered: leave them at 0.0 and False"
    if getattr(shared.args, "percentile_clipping", 100) < 100 or not getattr(shared.args, "block_wise", True):
        return "bitsandbytes' percentile_clipping and block_wise=False are not covered: leave them at 100 and True"
    return None


def _applied(data: StepData, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The two moments that the step applied, float32."""
    if data.state["state1"].dtype != torch.uint8:
        return data.state["state1"], data.state["state2"]
    gradient = wide(as_it_stands(data))
    first, second = torch.zeros_like(gradient), torch.zeros_like(gradient)
    if data.note is not None:
        first = _dequantised(data.note[0], data.note[1], data.state["qmap1"])
        second = _dequantised(data.note[2], data.note[3], data.state["qmap2"])
    first.mul_(betas[0]).add_(gradient, alpha=1 - betas[0])
    return first, second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])


def _kept(data: StepData, which: str) -> Tensor:
    state = data.state
    if state["state1"].dtype != torch.uint8:
        return state[f"state{which}"]
    return _dequantised(state[f"state{which}"], state[f"absmax{which}"], state[f"qmap{which}"])


def _dequantised(codes: Tensor, scales: Tensor, values: Tensor) -> Tensor:
    """Float32 moments: code → value, times the scale of its block."""
    plain = values.index_select(0, codes.flatten().int())
    return (plain * scales.repeat_interleave(BLOCK)[: plain.numel()]).view(codes.shape)


def _metric(data: StepData, second: Tensor) -> Tensor:
    config = _config(data)
    corrected = second.sqrt() / (1 - config["betas"][1] ** data.state["step"]) ** 0.5
    return corrected.add_(config["eps"]).reciprocal_()


def _step(
    data: StepData, config: Mapping[str, Any], metric: Tensor, average: Momentum, direct: float = 0.0
) -> AppliedStep:
    decay = stored_decay(config["lr"] * config["weight_decay"], data)
    half = data.parameter.dtype.itemsize < 4
    if data.parameter.device.type != "cuda":
        return AppliedStep(direct, metric, average, decay, stores=AT_ONCE if half else DECAY_FIRST)
    kept = replace(average, weight=average.weight * (1 - decay))
    return AppliedStep(direct * (1 - decay), metric, kept, decay, stores=DECAY_LAST)


def _config(data: StepData) -> Mapping[str, Any]:
    """The options of the parameter: those of its group, and what bitsandbytes' own manager sets for it alone."""
    optimizer: Any = data.optimizer
    places = (
        (g, i)
        for g, group in enumerate(optimizer.param_groups)
        for i, parameter in enumerate(group["params"])
        if parameter is data.parameter
    )
    return optimizer.get_config(*next(places), data.group)


ADAM_8BIT = Family(
    "AdamW, Adam with 8-bit or 32-bit moments (bitsandbytes)",
    read,
    metric,
    coming,
    note=moments_before,
    refuses=refuses,
    metric_formula="1/(√v_t/√(1−β2^t) + ε), v_t before it is quantised again",
    weight_formula="η(1−β1)/(1−β1^t); on CUDA (1−λ_d) times that",
    past_formula="as Adam's, m_t before it is quantised again; on CUDA (1−λ_d) times that",
    decay_formula="λ_d = ηλ, on CUDA applied last",
)
