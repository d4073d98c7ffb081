"""Adafactor of transformers: its own step sizes, an optional first moment, everything in float32."""

from __future__ import annotations

import math

from torch import Tensor

from dyn_probe.metric.applied import AT_ONCE, DECAY_FIRST, AppliedStep, Metric, Momentum, RankOne
from dyn_probe.metric.family import Family, StepData, as_it_stands


def metric(data: StepData) -> Metric:
    """``P = r cᵀ`` with ``r = 1/√(row/mean row)``, ``c = 1/√col``; vectors ``1/√v``."""
    if "exp_avg_sq" in data.state:
        return data.state["exp_avg_sq"].rsqrt()
    rows, columns = data.state["exp_avg_sq_row"], data.state["exp_avg_sq_col"]
    r = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt_()
    c = columns.rsqrt()
    return RankOne(r, c) if data.parameter.dim() == 2 else r.unsqueeze(-1) * c.unsqueeze(-2)


def read(data: StepData) -> AppliedStep:
    """``ω = α/max(1, rms(P∘G)/d)``, with a first moment ``(1−β1)`` times that; ``α`` from the state."""
    group, size = data.group, _size(data)
    plain = AppliedStep(1.0, metric(data))
    update = _rms(plain.times_metric(as_it_stands(data)))
    weight = size / max(1.0, update / group["clip_threshold"])
    beta = group["beta1"]
    momentum = None
    if beta is not None:
        momentum = Momentum(data.state["exp_avg"], 1.0, (1 - beta) * weight, in_metric=False, retain=beta)
    return AppliedStep(
        0.0 if momentum else weight,
        plain.metric,
        momentum,
        decay=group["weight_decay"] * size,
        stores=AT_ONCE if data.parameter.dtype.itemsize < 4 else DECAY_FIRST,
    )


def _size(data: StepData) -> float:
    """``α``: the relative step (or lr) times the scale of the parameter before the step, which the state keeps."""
    group, step = data.group, data.state["step"]
    size = group["lr"]
    if group["relative_step"]:
        size = min(1e-6 * step if group["warmup_init"] else 1e-2, 1 / math.sqrt(step))
    return float(size) * (max(group["eps"][1], float(data.state["RMS"])) if group["scale_parameter"] else 1.0)


def _rms(tensor: Tensor) -> float:
    return tensor.norm(2).item() / tensor.numel() ** 0.5


TRANSFORMERS_ADAFACTOR = Family(
    "Adafactor (transformers)",
    read,
    metric,
    None,
    metric_formula="1/√(r cᵀ/mean r), vectors 1/√v",
    weight_formula="α/max(1, rms(P∘G)/d), with a first moment (1−β1) times that; α = max(ε₂, rms θ)·lr, "
    "or the relative step min(10⁻², 1/√t), warming up min(10⁻⁶t, 1/√t), for lr",
    past_formula="0; with β1 m_t − ωP∘G, not through today's P",
    decay_formula="λ_d = αλ",
)
