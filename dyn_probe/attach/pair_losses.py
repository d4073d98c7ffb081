"""The loss of each pair, as the trainer itself averages it: seen where it takes means, and held to its total."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

CLOSE = 1e-5
"""Largest difference, relative to the loss, between the trainer's loss and the mean over the pairs' losses, where the
trainer computes all of it in float32; else two roundings of the coarsest type in it."""


@dataclass
class Likelihood:
    """A cross-entropy over chosen tokens, averaged over all of them.

    Args:
        logits: ``[B·(L-1), V]``, detached.
        labels: ``[B·(L-1)]``; −100 counts nowhere.
        gradient: ∂loss/∂cross-entropy, once the backward has run.
    """

    logits: Tensor
    labels: Tensor
    gradient: Tensor | None = None

    @property
    def count(self) -> Tensor:
        """Tokens that it is averaged over."""
        return (self.labels != -100).sum()

    def losses(self, pairs: int) -> Tensor:
        """``[B]`` each pair's share, whose mean is the cross-entropy itself; one row at a time."""
        rows = zip(self.logits.chunk(pairs), self.labels.chunk(pairs), strict=True)
        sums = [functional.cross_entropy(logits.float(), labels, reduction="sum") for logits, labels in rows]
        return torch.stack(sums).double() * pairs / self.count

    def coefficients(self, response: Tensor) -> Tensor | None:
        """``[2B]`` ∂loss/∂(row log-probability) by this term; None where it leaves out tokens of a response.

        Args:
            response: ``[2B, L-1]`` response tokens, at the positions that predict them.
        """
        chosen = response.chunk(2)[0].bool()
        if self.gradient is None:
            return None
        counted = self.labels != -100
        if counted.numel() == chosen.numel():
            whole = bool(counted.view(chosen.shape)[chosen].all())
        else:  # only the response tokens, one after another
            whole = counted.numel() == int(chosen.sum()) and bool(counted.all())
        if not whole:
            return None
        found = torch.zeros(len(response), dtype=torch.float64, device=response.device)
        found[: len(chosen)] = -self.gradient.double() / self.count
        return found


class Means(TorchFunctionMode):
    """Keeps every vector ``[B]`` with a gradient whose mean is taken, and every cross-entropy.

    Args:
        pairs: ``B``; for a trainer on single responses their number.
        guard: around what runs in the trainer's backward.
    """

    def __init__(self, pairs: int, guard: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
        super().__init__()
        self.pairs, self.guard = pairs, guard
        self.seen: list[Tensor] = []
        self.likelihoods: list[Likelihood] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        whole = func in (Tensor.mean, Tensor.nanmean) and len(args) == 1 and not kwargs
        if whole and args[0].shape == (self.pairs,) and args[0].requires_grad:
            self.seen.append(args[0].detach())
        found = func(*args, **(kwargs or {}))
        if func is functional.cross_entropy and found.requires_grad and found.dim() == 0:
            self._keep(args[0], args[1], found)
        return found

    def _keep(self, logits: Tensor, labels: Tensor, found: Tensor) -> None:
        kept = Likelihood(logits.detach(), labels)
        self.likelihoods.append(kept)

        def take(gradient: Tensor) -> None:
            kept.gradient = gradient.detach()

        found.register_hook(self.guard(take))

    @torch.no_grad()
    def losses(self, loss: Tensor, weights: Sequence[float], likelihood: float) -> Tensor | None:
        """``[B]`` loss of each pair; None where what was seen does not add up to ``loss``.

        Args:
            loss: the trainer's.
            weights: of the terms that are means over the pairs.
            likelihood: weight of the cross-entropy, where the loss has one.
        """
        if len(self.seen) < len(weights) or (likelihood and len(self.likelihoods) != 1):
            return None
        terms = zip(self.seen, weights, strict=False)  # means of what is only logged come after those of the terms
        found = torch.stack([values.double() * weight for values, weight in terms]).sum(0)
        if likelihood:
            found = found + likelihood * self.likelihoods[0].losses(self.pairs)
        types = {loss.dtype, *(one.dtype for one in self.seen), *(one.logits.dtype for one in self.likelihoods)}
        total, room = loss.detach().double(), max(CLOSE, *(2 * torch.finfo(one).eps for one in types))
        return found if bool((found.mean() - total).abs() <= room * total.abs() + 1e-12) else None

    def coefficients(self, response: Tensor) -> Tensor | None:
        """``[2B]`` ∂loss/∂(row log-probability) by the cross-entropies; None where there are none that are known."""
        found = [given for one in self.likelihoods if (given := one.coefficients(response)) is not None]
        return torch.stack(found).sum(0) if found else None
