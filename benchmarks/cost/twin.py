"""The slow twin: both gradients of a pair by plain autograd in float64, sharing no code with the library."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from dyn_probe import PairBatch


def row_logp(model: Any, ids: Tensor, response: Tensor) -> Tensor:
    """Sum of one row's response log-probabilities (nats), from a forward of its own. ``ids [L]``, ``response [L]``."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    said = response[1:].bool()
    return torch.log_softmax(logits[said], -1).gather(1, ids[1:][said][:, None]).sum()


def true_numbers(model: Any, batch: PairBatch, pairs: int) -> Tensor:
    """``[3, pairs]`` (float64) ``‖g_w‖``, ``‖g_l‖``, ``⟨g_w, g_l⟩`` of the first pairs, on a copy in float64."""
    twin = copy.deepcopy(model).double()
    twin.zero_grad(set_to_none=True)
    trained = [p for p in twin.parameters() if p.requires_grad]
    found = []
    for pair in range(pairs):
        rows = [
            torch.autograd.grad(row_logp(twin, batch.input_ids[i], batch.response_mask[i]), trained)
            for i in (pair, pair + batch.pairs)
        ]
        chosen, rejected = (sum((g * g).sum() for g in row).sqrt() for row in rows)
        inner = sum((a * b).sum() for a, b in zip(*rows, strict=True))
        found.append(torch.stack([chosen, rejected, inner]))
    return torch.stack(found, 1).cpu()


def largest_error(found: Tensor, wanted: Tensor) -> float:
    """Of the numbers that were given (others are NaN): norms relative to themselves, inner products to both norms.

    Args:
        found, wanted: ``[3, pairs]``; ``found`` may have more pairs.
    """
    got = found[:, : wanted.shape[1]].double().cpu()
    scale = torch.stack([wanted[0], wanted[1], wanted[0] * wanted[1]])
    error = ((got - wanted) / scale).abs()[~got.isnan()]
    return float(error.max()) if error.numel() else float("nan")
