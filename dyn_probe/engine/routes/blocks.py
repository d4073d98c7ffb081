"""Inner products from the rows' gradients written out, a slice of the parameter at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import HALF, dots
from dyn_probe.engine.factors import ALL, Outer

SLICE = {"cpu": 1 << 22}
"""Numbers of all rows in one slice, 16 MiB in float32: larger memory comes fresh from the system each time, and is then
slower to touch than to compute. Elsewhere ``LARGE``."""
LARGE = 1 << 24
Seen = Callable[[slice, Tensor], None]
"""Called with the entries of a slice and the rows' gradients there, ``[R, entries, …]``."""


def by_blocks(one: Outer, other: Outer, groups: int, metric: Tensor | None = None, seen: Seen | None = None) -> Tensor:
    """From the rows' gradients, a slice of the parameter's first dimension at a time.

    Args:
        metric: in the parameter's shape.
        seen: looks at each slice of ``one``, which the next one overwrites.
    """
    if metric is None and seen is None and _cuts_narrow_side(one):
        turned = one.turned()
        one, other = turned, turned if one is other else other.turned()
    first, width = one.sides[0].shape[-1], _width(one)
    if width >= first:
        return _block_products(one, other, groups, metric, ALL, seen)
    own = one.grads.device.type in SLICE and not _in_half(one)
    memory = one.grads.new_empty(one.rows * width * one.sides[1].shape[-1]) if own else None
    slices = [slice(begin, min(begin + width, first)) for begin in range(0, first, width)]
    return torch.stack([_block_products(one, other, groups, metric, s, seen, memory) for s in slices]).sum(0)


def blocks_and_sum(factor: Outer, groups: int, seen: Seen | None = None) -> tuple[Tensor, Tensor]:
    """``by_blocks`` of a factor with itself, and the sum of its rows' gradients, in the parameter's shape."""
    sums: list[Tensor] = []

    def see(entries: slice, block: Tensor) -> None:
        sums.append(block.sum(0))
        if seen is not None:
            seen(entries, block)

    turned = seen is None and _cuts_narrow_side(factor)
    one = factor.turned() if turned else factor
    answers = by_blocks(one, one, groups, seen=see)
    total = torch.cat(sums) if len(sums) > 1 else sums[0]
    return answers, total.mT.contiguous() if turned else total


def _width(one: Outer) -> int:
    """Entries of the first dimension in one slice. In half precision each slice has the other side turned into float32
    again on a CPU, so that there are few of them."""
    most = LARGE if _in_half(one) else SLICE.get(one.grads.device.type, LARGE)
    return max(1, most // max(1, one.rows * one.sides[1].shape[-1]))


def _in_half(one: Outer) -> bool:
    return one.grads.dtype in HALF or one.inputs.dtype in HALF


def _cuts_narrow_side(one: Outer) -> bool:
    """Whether slices are needed and would be cut out of the narrower side: products of the wider one's slices are
    faster (by 4 to 25 % on one and two cores, for 8 and 16 rows of 128 to 1024 positions)."""
    first, rest = (side.shape[-1] for side in one.sides)
    return _width(one) < first < rest


def _block_products(
    one: Outer,
    other: Outer,
    groups: int,
    metric: Tensor | None,
    entries: slice,
    seen: Seen | None,
    memory: Tensor | None = None,
) -> Tensor:
    """The part of some entries of the parameter's first dimension; ``memory`` may be used for ``one``'s."""
    left = one.block(entries, memory)
    if seen is not None:
        seen(entries, left)
    right = left if one is other else other.block(entries)
    weighed = left if metric is None else left * metric[entries].to(left.dtype)
    flat = _flat(weighed, groups)
    return dots(flat, flat if weighed is right else _flat(right, groups))


def _flat(block: Tensor, groups: int) -> Tensor:
    """``[R, p, q]`` as ``[n, G, p q]``."""
    return block.reshape(block.shape[0] // groups, groups, block.shape[1] * block.shape[2])
