"""Inner products from the rows' gradients written out, a slice of the parameter at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import dots
from dyn_probe.engine.factors import ALL, Outer

SLICE = 1 << 24
"""Numbers of all rows in one slice (64 MiB in float32)."""
Seen = Callable[[slice, Tensor], None]
"""Called with the entries of a slice and the rows' gradients there, ``[R, entries, …]``."""


def by_blocks(one: Outer, other: Outer, groups: int, metric: Tensor | None = None, seen: Seen | None = None) -> Tensor:
    """From the rows' gradients, a slice of the parameter's first dimension at a time.

    Args:
        metric: in the parameter's shape.
        seen: looks at each slice of ``one``.
    """
    first, rest = (side.shape[-1] for side in one.sides)
    width = max(1, SLICE // max(1, one.rows * rest))
    slices = [slice(begin, min(begin + width, first)) for begin in range(0, first, width)] if first > width else [ALL]
    found = [_block_products(one, other, groups, metric, entries, seen) for entries in slices]
    return found[0] if len(found) == 1 else torch.stack(found).sum(0)


def blocks_and_sum(factor: Outer, groups: int, seen: Seen | None = None) -> tuple[Tensor, Tensor]:
    """``by_blocks`` of a factor with itself, and the sum of its rows' gradients, in the parameter's shape."""
    sums: list[Tensor] = []

    def see(entries: slice, block: Tensor) -> None:
        sums.append(block.sum(0))
        if seen is not None:
            seen(entries, block)

    answers = by_blocks(factor, factor, groups, seen=see)
    return answers, torch.cat(sums) if len(sums) > 1 else sums[0]


def _block_products(
    one: Outer, other: Outer, groups: int, metric: Tensor | None, entries: slice, seen: Seen | None
) -> Tensor:
    """The part of some entries of the parameter's first dimension."""
    left = one.block(entries)
    if seen is not None:
        seen(entries, left)
    right = left if one is other else other.block(entries)
    weighed = left if metric is None else left * metric[entries].to(left.dtype)
    flat = _flat(weighed, groups)
    return dots(flat, flat if weighed is right else _flat(right, groups))


def _flat(block: Tensor, groups: int) -> Tensor:
    """``[R, p, q]`` as ``[n, G, p q]``."""
    return block.reshape(block.shape[0] // groups, groups, block.shape[1] * block.shape[2])
