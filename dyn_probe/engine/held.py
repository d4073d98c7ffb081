"""What a recorded backward leaves for later: every row's gradient in factored form, until it is dropped.

With it a row's gradient can be multiplied with any direction of the parameters (the optimizer's step, its momentum),
with other rows in any elementwise metric, and summed up with any coefficients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.engine.arithmetic import HALF, as32, exact_products
from dyn_probe.engine.factors import ALL, Factor, Outer, Vector
from dyn_probe.engine.products import lookups_last, of_uses

BLOCK = {"cpu": 1 << 19}
"""Numbers of one slice of all rows' gradients: what a cache holds. Elsewhere (``LARGE``): what fills the device."""
LARGE = 1 << 26
NARROWEST = 32
"""Entries of one slice, at least: products of fewer are slow."""

Blocks = Iterator[tuple[slice, Tensor]]
Factors = Mapping[str, Sequence[Factor]]
"""Parameter → the factors of its uses."""


@dataclass(frozen=True, eq=False)
class Held:
    """Factors by parameter, a part per backward.

    Args:
        parts: factors, and the weights ``[2B]`` that make their rows those of the bare log-probabilities (0 for rows
            that belong to another part).
    """

    parts: tuple[tuple[Factors, Tensor], ...]

    @property
    def rows(self) -> int:
        """``2B``."""
        return len(self.parts[0][1])

    @property
    def device(self) -> str:
        """The kind of device that it lies on."""
        return self.parts[0][1].device.type

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return sum(f.nbytes for factors, _ in self.parts for found in factors.values() for f in found)

    def along(self, name: str, direction: Tensor) -> Tensor:
        """``[2B]`` (float64) ``⟨g_i, D⟩`` over one parameter; ``D`` in the parameter's shape."""
        total = torch.zeros(self.rows, dtype=torch.float64, device=direction.device)
        with exact_products(self.device):
            for factors, weights in self.parts:
                for factor in factors.get(name, ()):
                    total += factor.along(direction).double() * weights
        return total

    def gram(self, name: str, groups: int, metric: Tensor | None = None) -> Tensor:
        """``[G, n, n]`` (float64) ``Σ_k P_k g_ik g_jk`` over one parameter, rows in ``G`` groups ``[n, G]``.

        Args:
            metric: ``P`` in the parameter's shape; None for 1.
        """
        n = self.rows // groups
        total = torch.zeros(groups, n, n, dtype=torch.float64, device=self.parts[0][1].device)
        with exact_products(self.device):
            for factors, weights in self.parts:
                scale = weights.unflatten(0, (n, groups)).T
                if found := factors.get(name):
                    total += of_uses(found, groups, metric) * scale[:, :, None] * scale[:, None, :]
        return total

    def blocks(self, name: str, shape: torch.Size, most: int = 0) -> tuple[Tensor, Blocks] | None:
        """The rows' gradients themselves over one parameter, a slice at a time: everything that is asked of them can be
        taken in one pass, which costs one product of inputs and output-gradients.

        Args:
            most: rows of the largest batch whose slices are to be the same.

        Returns:
            ``[2B]`` (float64) by which rows are to be multiplied, and pairs of ``(entries, rows [2B, n])``: entries of
            the parameter's first dimension, and those of each row's gradient, flat. None where no use of the parameter
            is an outer product (then the factors' own ``along`` and ``gram`` cost less), or one cannot be sliced.
        """
        found = [(factors.get(name, ()), weights) for factors, weights in self.parts if factors.get(name)]
        forms = [factor for factors, _ in found for factor in factors]
        if not any(isinstance(factor, Outer) for factor in forms) or any(isinstance(f, Vector) for f in forms):
            return None
        if len(found) == 1:
            return found[0][1], _slices(list(found[0][0]), shape, max(most, self.rows))
        scaled = [factor.scaled(weights) for factors, weights in found for factor in factors]
        return torch.ones_like(self.parts[0][1]), _slices(scaled, shape, max(most, self.rows))

    def weighted(
        self, name: str, coefficients: Tensor, shape: torch.Size, rows: slice = ALL, total: Tensor | None = None
    ) -> Tensor | None:
        """``total + Σ_i c_i g_i`` over one parameter, in its shape; None where it had no use.

        Args:
            rows: those of the sum; what others have in ``coefficients [2B]`` does not count.
            total: is added to in place.
        """
        with exact_products(self.device):
            for factors, weights in self.parts:
                found, own = factors.get(name, ()), coefficients * weights
                found, own = (found, own) if rows is ALL else _some(found, own, rows)
                total = weighted_sum(found, own, shape, total)
        return total


def _some(factors: Sequence[Factor], coefficients: Tensor, rows: slice) -> tuple[Sequence[Factor], Tensor]:
    """What a sum over some rows is made of; where a factor cannot be divided, all rows, with 0 for the others."""
    parts = [part for factor in factors if (part := factor.part(rows)) is not None]
    if len(parts) == len(factors):
        return parts, coefficients[rows]
    own = torch.zeros_like(coefficients)
    own[rows] = coefficients[rows]
    return factors, own


def _slices(factors: Sequence[Any], shape: torch.Size, rows: int) -> Blocks:
    """``(entries, rows)`` of the sum of one parameter's uses, in slices as wide as ``rows`` of them may be; the next
    ones overwrite them."""
    first, *others = lookups_last(factors)
    device = first.grads.device.type
    most = BLOCK.get(device, LARGE)
    width = max(min(NARROWEST, shape[0]), most // max(1, rows * shape[1:].numel()))
    memory = as32(first.grads.new_empty(0)).new_empty(first.rows * width * shape[1:].numel())
    for begin in range(0, shape[0], width):
        entries = slice(begin, min(begin + width, shape[0]))
        with exact_products(device):  # not around the yield: what the caller does is the caller's
            block = first.block(entries, memory)
            for factor in others:
                factor.add_block(entries, block)
            rows_of_slice = block.flatten(1)
        yield entries, rows_of_slice


def weighted_sum(
    factors: Sequence[Factor],
    coefficients: Tensor,
    shape: torch.Size,
    total: Tensor | None = None,
    rounded: bool = False,
) -> Tensor | None:
    """``total + Σ_i c_i g_i`` over the uses of one parameter.

    Args:
        rounded: in the precision of a training in the factors' type (``trained``).
    """
    for factor in lookups_last(factors):
        total = (factor.trained if rounded else factor.weighted)(coefficients, total, shape)
    return total


def add_weighted_gradients(held: Factors, coefficients: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
    """Add ``Σ_i c_i g_i`` to each parameter's ``.grad``, in the precision of a training in the parameter's type.

    Args:
        coefficients: ``c [rows]``.
        parameters: parameter name → parameter.
    """
    with exact_products(coefficients.device.type):
        for name, factors in held.items():
            parameter = parameters[name]
            total = weighted_sum(factors, coefficients, parameter.shape, rounded=parameter.dtype in HALF)
            if total is not None:
                add_gradient(parameter, total)


def add_gradient(parameter: nn.Parameter, total: Tensor) -> None:
    """Add ``total`` to the parameter's ``.grad``, in its type."""
    total = total.to(parameter.dtype)
    parameter.grad = total if parameter.grad is None else parameter.grad + total
