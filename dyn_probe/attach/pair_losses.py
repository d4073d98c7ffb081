"""The loss of each pair, as the trainer itself averages it: seen where it takes the mean, and held to its total."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CLOSE = 1e-5
"""Largest difference, relative to the loss, between the trainer's loss and the mean over the pairs' losses."""


class Means(TorchFunctionMode):
    """Keeps every vector ``[B]`` with a gradient whose mean is taken.

    Args:
        pairs: ``B``.
    """

    def __init__(self, pairs: int) -> None:
        super().__init__()
        self.pairs = pairs
        self.seen: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        whole = func is Tensor.mean and len(args) == 1 and not kwargs
        if whole and args[0].shape == (self.pairs,) and args[0].requires_grad:
            self.seen.append(args[0].detach())
        return func(*args, **(kwargs or {}))

    def losses(self, loss: Tensor, weights: Sequence[float]) -> Tensor | None:
        """``[B]`` loss of each pair; None where what was seen does not add up to ``loss``."""
        if len(self.seen) < len(weights):
            return None
        terms = zip(self.seen, weights, strict=False)  # means of what is only logged come after those of the terms
        found = torch.stack([values.double() * weight for values, weight in terms]).sum(0)
        total = loss.detach().double()
        return found if bool((found.mean() - total).abs() <= CLOSE * total.abs() + 1e-12) else None
