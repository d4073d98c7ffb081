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


def by_blocks(
    one: Outer,
    other: Outer,
    groups: int,
    metric: Tensor | None = None,
    sums: list[Tensor] | None = None,
    seen: Seen | None = None,
) -> Tensor:
    """From the rows' gradients, a slice of the parameter's first dimension at a time.

    Args:
        metric: in the parameter's shape.
        sums: gets the sum of ``one``'s rows over each slice.
        seen: looks at each slice of ``one``.
    """
    sizes = (one.grads.shape[-1], one.inputs.shape[-1])
    first, rest = sizes[::-1] if one.transposed else sizes
    width = max(1, SLICE // max(1, one.rows * rest))
    slices = [slice(begin, min(begin + width, first)) for begin in range(0, first, width)]
    whole = slices if first > width else [ALL]
    found = [_block_products(one, other, groups, metric, entries, sums, seen) for entries in whole]
    return found[0] if len(found) == 1 else torch.stack(found).sum(0)


def _block_products(
    one: Outer,
    other: Outer,
    groups: int,
    metric: Tensor | None,
    entries: slice,
    sums: list[Tensor] | None,
    seen: Seen | None,
) -> Tensor:
    """The part of some entries of the parameter's first dimension."""
    left = one.block(entries)
    if sums is not None:
        sums.append(left.sum(0))
    if seen is not None:
        seen(entries, left)
    right = left if one is other else other.block(entries)
    if metric is not None:
        return dots(_flat(left * metric[entries].to(left.dtype), groups), _flat(right, groups))
    flat = _flat(left, groups)
    return dots(flat, flat if one is other else _flat(right, groups))


def _flat(block: Tensor, groups: int) -> Tensor:
    """``[R, p, q]`` as ``[n, G, p q]``."""
    return block.reshape(block.shape[0] // groups, groups, block.shape[1] * block.shape[2])
