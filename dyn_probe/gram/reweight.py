"""Weight gradients from what the taps held: ``Σ_i c_i g_i`` for row coefficients that were not known in the forward.

A pairwise-normalised update needs the gradient norms before it knows its coefficients (Yuan et al. 2024, §5.1). The
backward of the bare log-probabilities gives both the norms and, held here, everything that the weight gradients need.
So the step costs one forward, one backward of activations and one product per weight: a training step, not 2B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dyn_probe.gram.factors import Factor, Lookup, Outer, Vector, upcast
from dyn_probe.gram.linear import response_rows


def add_weighted_gradients(
    held: Mapping[str, Sequence[Factor]], coefficients: Tensor, parameters: Mapping[str, nn.Parameter]
) -> None:
    """Add ``Σ_i c_i g_i`` to each parameter's ``.grad``.

    Args:
        held: parameter name → its uses.
        coefficients: ``c [rows]``.
        parameters: parameter name → parameter.
    """
    with torch.no_grad():
        for name, factors in held.items():
            parameter = parameters[name]
            if not factors:
                continue
            ordered = sorted(factors, key=lambda factor: isinstance(factor, Lookup))  # they add into what is there
            total = weighted(ordered[0], coefficients, parameter)
            for factor in ordered[1:]:
                total = added(total, factor, coefficients, parameter)
            total = total.to(parameter.dtype)
            parameter.grad = total if parameter.grad is None else parameter.grad + total


def weighted(factor: Factor, coefficients: Tensor, parameter: nn.Parameter) -> Tensor:
    """``Σ_i c_i g_i`` of one use, in the parameter's shape."""
    if isinstance(factor, Outer):
        return _outer(factor, coefficients)
    if isinstance(factor, Lookup):
        return added(upcast(factor.grads).new_zeros(parameter.shape), factor, coefficients, parameter)
    if isinstance(factor, Vector):
        values = upcast(factor.values)
        return (coefficients.to(values.dtype) @ values).reshape(parameter.shape)
    rows = [c * factor.dense(i) for i, c in enumerate(coefficients.to(upcast(parameter).dtype))]
    return torch.stack(rows).sum(0).reshape(parameter.shape)


def added(total: Tensor, factor: Factor, coefficients: Tensor, parameter: nn.Parameter) -> Tensor:
    """``total`` and another use's ``Σ_i c_i g_i``; a lookup adds only the entries it read."""
    if not isinstance(factor, Lookup):
        return total.add_(weighted(factor, coefficients, parameter))
    grads = upcast(factor.grads) * coefficients[:, None, None].to(upcast(factor.grads).dtype)
    return total.index_add_(0, factor.ids.flatten(), grads.flatten(0, 1).to(total.dtype))


def _outer(factor: Outer, coefficients: Tensor) -> Tensor:
    """``Σ_i c_i B_iᵀ A_i`` as one product over all positions."""
    if factor.wide:
        rows = response_rows(factor)
        inputs = torch.cat([upcast(a) * c.to(upcast(a).dtype) for (a, _), c in zip(rows, coefficients, strict=True)])
        grads = torch.cat([upcast(b) for _, b in rows])
    else:
        inputs = (upcast(factor.inputs) * coefficients[:, None, None].to(upcast(factor.inputs).dtype)).flatten(0, 1)
        grads = upcast(factor.grads).flatten(0, 1)
    inputs = inputs.to(grads.dtype)
    return inputs.T @ grads if factor.transposed else grads.T @ inputs
