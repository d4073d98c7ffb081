"""The gradient of the loss itself, from the very uses that its backward brings: training in one pass.

What a tap sees of row ``i`` is ``c_i`` times the gradient of its log-probability, so the plain sum of a factor's rows
is its share of the loss's gradient. Taken here, autograd need not compute it: the same numbers to rounding (law 6 of
docs/notation.md), and one product per weight less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dyn_probe.engine.arithmetic import matmul32
from dyn_probe.engine.factors import Factor, Outer, Vector
from dyn_probe.engine.held import add_gradient
from dyn_probe.engine.products import gram_and_sum


class Totals:
    """Sums by parameter, until ``store``.

    Args:
        parameters: the trained parameters by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, factor: Factor) -> None:
        """One use."""
        self.put(name, summed(factor, self._parameters[name].shape))

    def add_stacked(self, names: Sequence[str], factor: Factor) -> None:
        """A use of each of several parameters, row ``i`` of the ``j``-th being row ``i k + j``."""
        k = len(names)
        if type(factor) is Vector:
            sums = factor.grads.unflatten(0, (-1, k)).sum(0)
        else:
            assert type(factor) is Outer  # no other form is stacked
            left, right = (t.unflatten(0, (-1, k)).transpose(0, 1).flatten(1, 2) for t in factor.sides)
            sums = matmul32(left.mT, right)
        for name, total in zip(names, sums.unbind(0), strict=True):
            self.put(name, total)

    def gram(self, name: str, factor: Factor, groups: int) -> Tensor:
        """``[G, n, n]`` products of a parameter's only use; its sum comes out of the same pass where that is one."""
        answers, total = gram_and_sum(factor, groups)
        self.put(name, summed(factor, self._parameters[name].shape) if total is None else total)
        return answers

    def store(self) -> None:
        """Add the sums to the parameters' gradients."""
        for name, total in self._sums.items():
            add_gradient(self._parameters[name], total.reshape(self._parameters[name].shape))
        self._sums = {}

    def put(self, name: str, total: Tensor) -> None:
        """A share of a parameter's sum, in its shape."""
        self._sums[name] = self._sums[name] + total if name in self._sums else total


def summed(factor: Factor, shape: torch.Size) -> Tensor:
    """``Σ_i grad_i`` over all rows, in the parameter's ``shape``."""
    if type(factor) is Vector:
        return factor.grads.sum(0).reshape(shape)
    if type(factor) is Outer:
        return factor.product(factor.grads)
    ones = torch.ones(factor.rows, dtype=torch.float64, device=factor.grads.device)
    return factor.weighted(ones, None, shape)
