"""The step that an optimizer applied to one parameter, in the one form that all its families share.

    Δθ = −ω P∘(G + γθ) − p − λ_d θ

``θ`` is the parameter before the step, ``G`` the gradient that the optimizer saw (after clipping and unscaling), ``P``
the elementwise metric, ``ω`` the weight of this step's gradient, ``p`` what past steps contribute (units of θ), ``γ``
the coupled and ``λ_d`` the decoupled decay (docs/notation.md). Everything is read from the optimizer's state after the
step: ``v_t`` depends on ``G``, but as the metric that was applied it is simply read off. One parameter at a time, so
that no more than a few tensors of one parameter's size exist at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

Scalar = float | Tensor
"""A number, or a tensor without dimensions that stays on its device."""

Stores = tuple[tuple[str, ...], ...]
"""Which parts of a step are added, and rounded as the weights are stored, together; in this order."""

DECAY_FIRST: Stores = (("decay",), ("gradient", "momentum"))
DECAY_LAST: Stores = (("gradient", "momentum"), ("decay",))
AT_ONCE: Stores = (("decay", "gradient", "momentum"),)
ONE_BY_ONE: Stores = (("decay",), ("gradient",), ("momentum",))


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 or better; half precision is too coarse to compute in."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


@dataclass(frozen=True)
class RankOne:
    """``P = r cᵀ`` of a matrix parameter: it rescales inputs and output-gradients instead of every entry.

    Args:
        rows: ``r [n]``.
        columns: ``c [m]``, for a parameter of shape ``[n, m]``.
    """

    rows: Tensor
    columns: Tensor

    def times(self, tensor: Tensor) -> Tensor:
        """``P∘tensor``, shape ``[n, m]``."""
        return wide(tensor) * self.rows.unsqueeze(-1) * self.columns

    def dense(self) -> Tensor:
        """``P`` as a matrix ``[n, m]``."""
        return torch.outer(self.rows, self.columns)


Metric = Tensor | RankOne | None
"""An elementwise ``P ≥ 0`` in the parameter's shape, a rank-one one, or None for 1."""


@dataclass(frozen=True)
class Momentum:
    """The running average that a step applies, with this step's gradient in it.

    Args:
        buffer: the average after the step, in the parameter's shape.
        weight: what the step multiplies it by.
        share: how much of ``G + γθ`` (of ``P∘(G + γθ)`` where not ``in_metric``) this step put into the buffer.
        in_metric: whether this step's ``P`` multiplies the buffer; False where each gradient went in through the ``P``
            of its own step.
        retain: what this step multiplied the buffer of the step before by.
    """

    buffer: Tensor
    weight: Scalar
    share: Scalar
    in_metric: bool = True
    retain: Scalar = 0.0


@dataclass(frozen=True)
class AppliedStep:
    """One parameter's step: ``Δθ = −ω P∘(G + γθ) − p − λ_d θ``.

    Its tensors are the optimizer's own state, not copies: they speak of this step until the next one is made.

    Args:
        direct: weight of the gradient that does not go through the momentum; all of ω where there is none.
        metric: ``P``.
        momentum: the running average, None for optimizers without one.
        decay: ``λ_d``, as the weights' type rounds it.
        coupled: ``γ``.
        stores: what is rounded to the weights' type together, and in which order.
    """

    direct: Scalar
    metric: Metric = None
    momentum: Momentum | None = None
    decay: Scalar = 0.0
    coupled: Scalar = 0.0
    stores: Stores = DECAY_FIRST

    @property
    def weight(self) -> Scalar:
        """``ω``: weight of this step's gradient, directly and through the momentum."""
        return self.direct if self.momentum is None else self.direct + self.momentum.weight * self.momentum.share

    def times_metric(self, tensor: Tensor) -> Tensor:
        """``P∘tensor``, float32 or better."""
        if isinstance(self.metric, RankOne):
            return self.metric.times(tensor)
        return wide(tensor) if self.metric is None else self.metric * wide(tensor)

    def of(self, entries: slice) -> AppliedStep:
        """The step of some entries of the parameter's first dimension."""
        metric, momentum = self.metric, self.momentum
        if isinstance(metric, RankOne):
            metric = RankOne(metric.rows[entries], metric.columns)
        elif metric is not None:
            metric = metric[entries]
        momentum = None if momentum is None else replace(momentum, buffer=momentum.buffer[entries])
        return replace(self, metric=metric, momentum=momentum)

    def past(self, gradient: Tensor, before: Tensor) -> Tensor | None:
        """``p``: what the momentum holds of earlier steps, in units of θ; None without a momentum.

        Args:
            gradient: ``G``, the gradient that the optimizer saw.
            before: ``θ`` before the step (read only where the decay is coupled).
        """
        if self.momentum is None:
            return None
        own = self.times_metric(self._decayed(gradient, before)) * self.momentum.share
        return (self._buffer(self.momentum) - own) * self.momentum.weight

    def step(self, gradient: Tensor, before: Tensor) -> Tensor:
        """``Δθ`` as the formula says, with ``G`` and ``θ`` as in ``past``."""
        moved = -self.weight * self.times_metric(self._decayed(gradient, before)) - self.decay * wide(before)
        past = self.past(gradient, before)
        return moved if past is None else moved - past

    def increments(self, gradient: Tensor, before: Tensor) -> list[tuple[Tensor, Tensor]]:
        """``Δθ`` in the pieces that are rounded one after the other as the weights are stored: (piece, size).

        The size is what the terms of a piece amount to without their signs: the scale of its rounding errors.
        """
        own = self.times_metric(gradient) * self.direct
        decayed = self.times_metric(before) * (self.direct * self.coupled)
        buffer = torch.zeros_like(own) if self.momentum is None else self._buffer(self.momentum) * self.momentum.weight
        parts = {
            "decay": (-self.decay * wide(before), torch.zeros_like(own)),
            "gradient": (-(own + decayed), own.abs() + decayed.abs()),
            "momentum": (-buffer, buffer.abs()),
        }
        return [_summed([parts[name] for name in names]) for names in self.stores]

    def _decayed(self, gradient: Tensor, before: Tensor) -> Tensor:
        none = not isinstance(self.coupled, Tensor) and self.coupled == 0
        return wide(gradient) if none else wide(gradient) + self.coupled * wide(before)

    def _buffer(self, momentum: Momentum) -> Tensor:
        return self.times_metric(momentum.buffer) if momentum.in_metric else wide(momentum.buffer)


def _summed(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    pieces, sizes = zip(*parts, strict=True)
    return sum(pieces[1:], pieces[0]), sum(sizes[1:], sizes[0])
