"""Does the formula's step give the weights that were stored? And what did storing them lose?

Weights in float64 hold a step to their last place. Weights in bfloat16 or float16 lose small steps, and at the learning
rates of large models weights in float32 lose part of it too: then the formula's step, rounded as the weights are
stored, has to give the stored weights, in all but the entries that lie so close to a rounding edge that the last digit
of the optimizer's state decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dyn_probe.metric.applied import AppliedStep, wide


@dataclass(frozen=True)
class StoredAgreement:
    """Counts of a parameter's entries; add them up over parameters with ``+``.

    Args:
        entries: all of them.
        exact: stored value = the formula's step, rounded as it is stored.
        edge: not equal, but within the precision of the optimizer's state: on a rounding edge.
        wrong: neither; the formula is not the step that was made.
        unmoved: stored value = the value before the step.
        lost: unmoved although the formula's step is not 0: what this type cannot hold.
    """

    entries: int = 0
    exact: int = 0
    edge: int = 0
    wrong: int = 0
    unmoved: int = 0
    lost: int = 0

    def __add__(self, other: StoredAgreement) -> StoredAgreement:
        return StoredAgreement(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def stored_agrees(
    before: Tensor, after: Tensor, step: AppliedStep, gradient: Tensor, *, precision: float | None = None, ulps: int = 0
) -> StoredAgreement:
    """Compare one parameter's stored weights with what the formula says.

    Args:
        before, after: the weights as they were stored before and after the step.
        step: the step as it was read.
        gradient: the gradient that the optimizer saw.
        precision: relative precision of the step's parts, that of the optimizer's state; None takes it from the
            weights' type (bfloat16 2⁻⁶, float16 2⁻⁹, float32 and float64 16 units in the last place).
        ulps: units in the last place that a stored value may be off: 1 for stochastic rounding.
    """
    before, after = before.detach(), after.detach()
    pieces = step.increments(gradient, before)
    loose = _precision(before.dtype) if precision is None else precision
    value, low, high = (_stored(before, pieces, slack) for slack in (0.0, -loose, loose))
    for _ in range(ulps):
        low, high = _next(low, -1), _next(high, 1)
    exact, unmoved = value == after, before == after
    inside = (low <= after) & (after <= high)
    moves = torch.stack([piece != 0 for piece, _ in pieces]).any(0)
    found = (exact, inside & ~exact, ~inside & ~exact, unmoved, unmoved & moves)
    return StoredAgreement(before.numel(), *(int(mask.sum()) for mask in found))


SLICE = 1 << 18
"""Entries that are compared at once."""


def lost_of(before: Tensor, after: Tensor, step: AppliedStep, gradient: Tensor) -> tuple[float, int]:
    """What storing one float32 parameter lost of its step, and how many of its entries are not where the formula's
    step, rounded as they are stored, puts them; arguments as of ``stored_agrees``.

    Returns:
        ``‖Δθ rounded − Δθ‖ / ‖Δθ‖``, of the formula alone, and the number of entries that are neither its rounded value
        nor on a rounding edge.
    """
    squares, wrong, precision = [0.0, 0.0], 0, _precision(before.dtype)
    whole = before.dim() == 0
    height = 1 if whole else max(1, SLICE // max(1, before[:1].numel()))
    for begin in range(0, 1 if whole else len(before), height):
        some: Any = ... if whole else slice(begin, begin + height)
        old, new = before.detach()[some], after.detach()[some]
        own = step if whole else step.of(some)
        pieces = [(piece.double(), size.double()) for piece, size in own.increments(gradient[some], old)]
        told = sum((piece for piece, _ in pieces[1:]), pieces[0][0])
        value, low, high = (_stored(old, pieces, slack) for slack in (0.0, -precision, precision))
        wrong += int((~((low <= new) & (new <= high))).sum())
        for k, tensor in enumerate((value.double() - old.double() - told, told)):
            squares[k] += float(tensor.square().sum())
    return (math.sqrt(squares[0] / squares[1]) if squares[1] else 0.0), wrong


def unmoved_share(weights: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of the weights that a step left as they were; NaN without weights.

    Args:
        weights: (before, after) of each parameter.
    """
    counts = [(int((before == after).sum()), before.numel()) for before, after in weights]
    total = sum(entries for _, entries in counts)
    return sum(same for same, _ in counts) / total if total else float("nan")


def _stored(before: Tensor, pieces: list[tuple[Tensor, Tensor]], slack: float) -> Tensor:
    """The weights after each piece has been added and rounded in turn; with a slack, the end of what they may be."""
    value = before
    for piece, size in pieces:
        exact = wide(value) + piece
        if slack:
            unit = math.copysign(2 * torch.finfo(exact.dtype).eps, slack)
            exact += slack * size + unit * (wide(value).abs() + exact.abs())
        value = exact.type(before.dtype)
    return value


def _precision(dtype: torch.dtype) -> float:
    eps = torch.finfo(dtype).eps
    return 2 * eps if dtype.itemsize < 4 else 16 * eps


def _next(values: Tensor, sign: int) -> Tensor:
    """The neighbouring number of the type, one step towards ±∞."""
    return torch.nextafter(values, torch.full_like(values, sign * float("inf")))
