"""Directional derivatives from what the taps held: ``⟨g_i, Δθ⟩`` for every row, without a row's gradient.

With ``Δθ`` the optimizer's own update this is the first-order change of each log-probability under the update that was
really made: adaptive scaling, momentum and clipping are in it (METHODS §8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dyn_probe.gram.factors import Factor, Lookup, Outer, PerRow, Vector, upcast
from dyn_probe.gram.linear import response_rows


def along(held: Mapping[str, Sequence[Factor]], direction: Mapping[str, Tensor], rows: int) -> Tensor:
    """``[rows]`` (float64): ``Σ ⟨g_i, Δ⟩`` over the parameters of ``direction``.

    Args:
        held: parameter name → its uses; a parameter that the backward did not reach has none.
        direction: parameter name → ``Δ`` in the parameter's shape.
    """
    with torch.no_grad():
        total = torch.zeros(rows, dtype=torch.float64)
        for name, delta in direction.items():
            for factor in held.get(name, ()):
                total += _along(factor, upcast(delta), rows).double().cpu()
    return total


def settled(factors: Sequence[Factor], rows: int) -> list[Factor]:
    """The factors without those that would be computed later, from parameters that have moved by then."""
    return [Vector(torch.stack([f.dense(i) for i in range(rows)])) if isinstance(f, PerRow) else f for f in factors]


def _along(factor: Factor, direction: Tensor, rows: int) -> Tensor:
    if isinstance(factor, Outer):
        matrix = direction.T if factor.transposed else direction
        if factor.wide:
            parts = response_rows(factor)
            return torch.stack([((upcast(b) @ matrix.to(upcast(b).dtype)) * upcast(a)).sum() for a, b in parts])
        outputs = upcast(factor.grads)
        return ((outputs @ matrix.to(outputs.dtype)) * upcast(factor.inputs)).sum((1, 2))
    if isinstance(factor, Lookup):
        return (direction[factor.ids] * upcast(factor.grads)).sum((1, 2))
    if isinstance(factor, Vector):
        values = upcast(factor.values)
        return values @ direction.flatten().to(values.dtype)
    return torch.stack([factor.dense(i) @ direction.flatten().to(factor.dense(i).dtype) for i in range(rows)])
