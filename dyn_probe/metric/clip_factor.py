"""One factor for all that is done to a gradient between the backward and the optimizer: clipping and unscaling.

The factor κ scales the pairs' own parts of a step. It is read, never guessed: from the same few entries of ``.grad``
when the backward ended and when the optimizer begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

ENTRIES = 8
"""Entries of each parameter that are compared, spread over it."""


@dataclass(frozen=True)
class Factor:
    """What the gradient was multiplied by.

    Args:
        value: κ; None where it cannot be read.
        error: largest relative deviation of an entry from that factor; NaN where there is none.
        reason: why there is no value, in words.
    """

    value: float | None
    error: float = float("nan")
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Compared:
    """The same entries of the gradients twice, on their device: κ is read off them once they have been fetched.

    Args:
        ended: ``[entries]`` when the (last) backward ended.
        begun: ``[entries]`` when the optimizer begins.
        dtype: the coarsest type of the gradients.
        reason: why there is nothing to compare, in words.
    """

    ended: Tensor = field(default_factory=lambda: torch.empty(0))
    begun: Tensor = field(default_factory=lambda: torch.empty(0))
    dtype: torch.dtype = torch.float64
    reason: str = ""

    def factor(self, ended: Tensor, begun: Tensor) -> Factor:
        """κ from the entries as they arrived on the CPU."""
        if self.reason:
            return Factor(None, reason=self.reason)
        return _fit(ended.double(), begun.double(), torch.finfo(self.dtype))


def gradient_slice(parameters: Iterable[Tensor], entries: int = ENTRIES) -> list[Tensor]:
    """Copies of a few fixed entries of each gradient, ``[≤ entries]`` each; empty where there is no gradient."""
    return [_few(parameter.grad, entries) for parameter in parameters]


def common_factor(ended: list[Tensor], begun: list[Tensor]) -> Factor:
    """κ with ``begun = κ·ended`` for every entry.

    Args:
        ended: slice of the gradients when the (last) backward ended.
        begun: the same slice when the optimizer begins.

    Entries that were 0 and stayed 0 say nothing. Gradients in half precision are rounded when they are scaled, so they
    may deviate by a few units of their last place. Elementwise clipping, or a factor per parameter, has no one factor.
    """
    found = compared(ended, begun)
    return found.factor(found.ended.cpu(), found.begun.cpu())


def compared(ended: list[Tensor], begun: list[Tensor]) -> Compared:
    """Both slices of ``common_factor`` side by side, without waiting for the device."""
    if [len(part) for part in ended] != [len(part) for part in begun]:
        return Compared(reason="a gradient appeared or vanished between the backward and the optimizer")
    if not ended or sum(map(len, ended)) == 0:
        return Compared(reason="no parameter has a gradient")
    dtype = max((part.dtype for part in begun if len(part)), key=lambda kind: torch.finfo(kind).eps)
    device = next(part.device for part in begun if len(part))
    old, new = (torch.cat([p.to(device) for p in parts if len(p)]) for parts in (ended, begun))
    return Compared(old, new, dtype)


def _fit(old: Tensor, new: Tensor, precision: torch.finfo) -> Factor:
    if not bool(torch.isfinite(old).all() & torch.isfinite(new).all()):
        return Factor(None, reason="the gradient is not finite")
    squared = float(old @ old)
    if squared == 0:
        return Factor(None, reason="all compared entries of the gradient are 0")
    value = float(old @ new) / squared
    # Below the smallest normal number a type has no relative precision left: compare with that number there.
    error = float(((new - value * old).abs() / ((value * old).abs() + precision.tiny)).max())
    if value <= 0 or error > 8 * precision.eps:
        said = "the gradient was changed by more than one factor (clipped entry by entry, or parameter by parameter)"
        return Factor(None, error, said)
    return Factor(value, error)


def _few(gradient: Tensor | None, entries: int) -> Tensor:
    if gradient is None:
        return torch.empty(0)
    local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    flat = local.detach().reshape(-1)
    return flat[:: max(1, len(flat) // entries)][:entries].clone()
