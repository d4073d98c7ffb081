"""A pair's inner products from gradients that are written down."""

from __future__ import annotations

import torch


def pair_blocks(inputs: torch.Tensor, grads: torch.Tensor) -> torch.Tensor:
    """``[B, 2, 2]`` (float64) of inputs ``[2B, T, q]`` and output-gradients ``[2B, T, p]``, chosen rows first."""
    half = len(inputs) // 2
    rows = [(b.double().T @ a.double()).flatten() for a, b in zip(inputs, grads, strict=True)]
    pairs = [torch.stack([rows[k], rows[k + half]]) for k in range(half)]
    return torch.stack([pair @ pair.T for pair in pairs])
