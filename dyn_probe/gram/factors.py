"""What a use leaves behind: the gradient of every row in factored form, never as a matrix of the parameter's size.

Letters: ``R`` rows, ``P`` positions, ``p`` inputs, ``q`` outputs, ``A [R, P, p]`` a layer's inputs, ``B [R, P, q]`` its
output-gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dyn_probe.capture.uses import Span


def upcast(tensor: Tensor) -> Tensor:
    """Half-precision tensors as float32; others as they are. All sums run in float32 or better."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass(eq=False)
class Outer:
    """``grad_i = Σ_t B_i[t] ⊗ A_i[t]``: the weight of a linear layer (``[q, p]``, or ``[p, q]`` if transposed)."""

    inputs: Tensor
    grads: Tensor
    transposed: bool = False
    wide: bool = False
    spans: tuple[Span, ...] = ()

    def dense(self, row: int) -> Tensor:
        left, right = upcast(self.grads[row]), upcast(self.inputs[row])
        return (right.T @ left if self.transposed else left.T @ right).flatten()


@dataclass(eq=False)
class Lookup:
    """``grad_i = Σ_t e_{x_i[t]} ⊗ D_i[t]``: an embedding's table ``[entries, d]`` read at ``ids [R, P]``."""

    ids: Tensor
    grads: Tensor
    entries: int

    def dense(self, row: int) -> Tensor:
        grads = upcast(self.grads[row])
        return grads.new_zeros(self.entries, grads.shape[-1]).index_add_(0, self.ids[row], grads).flatten()


@dataclass(eq=False)
class Vector:
    """``grad_i`` as it is, ``[R, n]``: biases and scales."""

    values: Tensor

    def dense(self, row: int) -> Tensor:
        return upcast(self.values[row])


@dataclass(eq=False)
class PerRow:
    """``grad_i`` made when it is asked for: the generic fallback. ``kept`` holds the rows made so far."""

    make: Callable[[int], Tensor]
    kept: dict[int, dict[str, Tensor]]

    def dense(self, row: int) -> Tensor:
        return upcast(self.make(row).flatten())


Factor = Outer | Lookup | Vector | PerRow
