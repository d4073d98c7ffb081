"""Adafactor of torch (Shazeer & Stern 2018): factored second moments, no first one, the update clipped by its size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dyn_probe.metric.applied import AppliedStep, Metric, RankOne, wide
from dyn_probe.metric.family import Family, StepData, as_it_stands, direction, learning_rate, steps_done, stored_decay


def norm_before(data: StepData) -> Tensor:
    """Noted when the step begins: ``‖θ‖``, rounded to the parameter's type as the optimizer does."""
    return data.parameter.detach().norm(2)


def metric(data: StepData) -> Metric:
    """``P = 1/√(r cᵀ / mean r)`` of matrices, ``1/√v`` of vectors, no entry above ``1/ε₁``.

    Rank one where no entry meets that bound (an embedding's rows without a gradient do); else, and in half precision,
    every entry in the optimizer's own order of operations.
    """
    state = data.state
    if data.parameter.dim() != 2 or data.parameter.dtype.itemsize < 4 or _bounded(data):
        return wide(_variance(data).rsqrt_())
    return RankOne((state["row_var"] / _mean(data)).rsqrt_().squeeze(-1), state["col_var"].rsqrt().squeeze(-2))


def read(data: StepData) -> AppliedStep:
    """``ω = α/max(1, rms(P∘G)/d)``, ``α = max(ε₂, rms θ)·min(η, 1/√t)`` with θ before the step."""
    group, rate, count = data.group, learning_rate(data.group), data.parameter.numel() ** 0.5
    size = max(group["eps"][1], data.note.item() / count) * min(float(rate), 1 / float(steps_done(data)) ** 0.5)
    update = _variance(data).rsqrt_().mul_(as_it_stands(data))
    clipped = max(1.0, update.norm(2).item() / (count * group["d"]))
    decay = stored_decay(rate * group["weight_decay"], data)
    return AppliedStep(direction(group) * size / clipped, metric(data), decay=decay)


def refuses(optimizer: Optimizer, group: Mapping[str, Any]) -> str | None:
    """Types mixed in one group: the foreach form then takes ε₁ from whichever type it meets first."""
    types = {parameter.dtype for parameter in group["params"]}
    if group["foreach"] and group["eps"][0] is None and len(types) > 1:
        names = ", ".join(sorted(map(str, types)))
        return f"Adafactor(foreach=True, eps=(None, …)) with {names} in one group: give eps a number or split the group"
    return None


def _smallest(data: StepData) -> float:
    """``ε₁``; where it is None, the resolution of the first type that the group steps."""
    if data.group["eps"][0] is not None:
        return data.group["eps"][0]
    first = next((p for p in data.group["params"] if p.grad is not None), data.parameter)
    return torch.finfo(first.dtype).eps


def _bounded(data: StepData) -> bool:
    """Whether an entry of a matrix's ``P`` meets its bound."""
    least = data.state["row_var"].min() * data.state["col_var"].min()
    return bool((least < _smallest(data) ** 2 * _mean(data)).any())


def _mean(data: StepData) -> Tensor:
    return data.state["row_var"].mean(dim=-2, keepdim=True).clamp_(min=_smallest(data))


def _variance(data: StepData) -> Tensor:
    """``v`` in the parameter's shape and type, at least ``ε₁²``, in the optimizer's own order of operations."""
    if "variance" in data.state:
        return data.state["variance"].clamp(min=_smallest(data) ** 2)
    return (data.state["row_var"] @ data.state["col_var"]).div_(_mean(data)).clamp_(min=_smallest(data) ** 2)


ADAFACTOR = Family(
    "Adafactor (torch)",
    read,
    metric,
    None,
    note=norm_before,
    refuses=refuses,
    metric_formula="1/√(r cᵀ/mean r), vectors 1/√v; at most 1/ε₁",
    weight_formula="α/max(1, rms(P∘G)/d), α = max(ε₂, rms θ)·min(η, 1/√t)",
    past_formula="0",
    decay_formula="λ_d = ηλ",
)
