"""What a recorded batch gave, as numbers on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Products:
    """What one batch gave, on the CPU in float64.

    Args:
        by_parameter: name → ``[B, 3]`` (``‖g_w‖²``, ``‖g_l‖²``, ``⟨g_w,g_l⟩``), or ``[2B, 2B]`` if ``full``.
        coefficients: ``[2B]`` ``∂loss/∂(row log-probability)``.
        separate: ``[B]`` pairs that were measured by a separate backward.
        full: whether ``by_parameter`` holds full Grams.
        unequal: ``[B]`` pairs with a row whose tokens have different coefficients (``coefficients`` has their mean), so
            that no pull on the row's log-probability stands for them.
    """

    by_parameter: dict[str, Tensor]
    coefficients: Tensor
    separate: Tensor
    full: bool
    unequal: Tensor

    @property
    def gram(self) -> Tensor | None:
        """``K [2B, 2B]``, where the full Gram was recorded."""
        return torch.stack(list(self.by_parameter.values())).sum(0) if self.full else None

    def pair_entries(self) -> dict[str, Tensor]:
        """Name → ``[B, 3]``."""
        return {n: pair_entries(v) for n, v in self.by_parameter.items()} if self.full else self.by_parameter


def pair_entries(gram: Tensor) -> Tensor:
    """``[B, 3]`` from ``[2B, 2B]``: ``K[w,w], K[l,l], K[w,l]`` of each pair."""
    own, half = gram.diagonal(), len(gram) // 2
    return torch.stack([own[:half], own[half:], gram.diagonal(half)], 1)
