"""What a recorded batch gave, as numbers on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Products:
    """What one batch gave, on the CPU in float64.

    Args:
        names: the ``P`` trained parameters, in the order in which the model uses them.
        values: ``[P, B, 3]`` (``‖g_w‖²``, ``‖g_l‖²``, ``⟨g_w,g_l⟩``), or ``[P, 2B, 2B]`` if ``full``.
        coefficients: ``[2B]`` ``∂loss/∂(row log-probability)``.
        separate: ``[B]`` pairs that were measured by a separate backward.
        full: whether ``values`` are full Grams.
        unequal: ``[B]`` pairs with a row whose tokens have different coefficients (``coefficients`` has their mean), so
            that no pull on the row's log-probability stands for them.
        lost: ``[B]`` pairs that have no answer (NaN): a coefficient was 0, too small to divide by or unequal, and
            nobody had said that it could be.
    """

    names: Sequence[str]
    values: Tensor
    coefficients: Tensor
    separate: Flags
    full: bool
    unequal: Tensor
    lost: Flags

    @property
    def gram(self) -> Tensor | None:
        """``K [2B, 2B]``, where the full Gram was recorded."""
        return self.values.sum(0) if self.full else None

    @property
    def entries(self) -> Tensor:
        """``[P, B, 3]``."""
        return pair_entries(self.values) if self.full else self.values


def pair_entries(gram: Tensor) -> Tensor:
    """``[…, B, 3]`` from ``[…, 2B, 2B]``: ``K[w,w], K[l,l], K[w,l]`` of each pair."""
    own, half = gram.diagonal(dim1=-2, dim2=-1), gram.shape[-1] // 2
    return torch.stack([own[..., :half], own[..., half:], gram.diagonal(half, -2, -1)], -1)
