"""Where a trainer computes token log-probabilities from logits: seen at the function that does it.

TRL's trainers call ``selective_log_softmax`` (or the one that also gives entropies) by its name in their own module.
While a loss is computed, that name stands for a function that calls the original and hands on what it returns: the very
tensor that the loss is made of.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

NAMES = ("selective_log_softmax", "selective_log_softmax_and_entropy")
"""Functions of TRL that give ``[rows, length]`` log-probabilities of tokens, alone or first of several."""


class Same(torch.autograd.Function):
    """Identity: the same storage under a tensor that is no view. A trainer that goes on to change it in place would
    otherwise leave the graph of what was seen."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # type: ignore[override]
        return values.data

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


@contextmanager
def seen(trainer: Any, receive: Callable[[Tensor, Tensor | None], None]) -> Iterator[None]:
    """Hand every result of these functions, and the tokens, to ``receive``, as long as the context lasts."""
    kinds = [kind for kind in type(trainer).__mro__ if kind.__module__.startswith("trl.")]
    modules = {kind.__module__: sys.modules[kind.__module__] for kind in kinds}
    places = [(module, name) for module in modules.values() for name in NAMES if hasattr(module, name)]
    originals = [getattr(module, name) for module, name in places]

    def told(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def function(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            tokens, *others = found if isinstance(found, tuple) else (found,)
            tokens = Same.apply(tokens) if tokens.requires_grad else tokens
            receive(tokens, args[1] if len(args) > 1 else kwargs.get("index"))
            return (tokens, *others) if others else tokens

        return function

    try:
        for (module, name), original in zip(places, originals, strict=True):
            setattr(module, name, told(original))
        yield
    finally:
        for (module, name), original in zip(places, originals, strict=True):
            setattr(module, name, original)
