"""Products whose sums run in float32 or better, whatever the type of their factors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import gcd

import torch
from torch import Tensor


def autocast_type(device: str) -> torch.dtype | None:
    """The type of autocast for this kind of device, None where it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def computing_in(dtype: torch.dtype | None, device: str) -> torch.autocast:
    """Autocast as ``autocast_type`` found it."""
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)


def exact_products(device: str) -> AbstractContextManager[None]:
    """No graph, and no autocast of whoever is around (a training loop may keep it on to the end of its step): products
    are made in the types of their factors. Costs nothing where both are off, as in most backwards."""
    off = not (torch.is_grad_enabled() or torch.is_autocast_enabled(device))
    return nullcontext() if off else _exact_products(device)


@contextmanager
def _exact_products(device: str) -> Iterator[None]:
    with torch.no_grad(), torch.autocast(device, enabled=False):
        yield


HALF = (torch.float16, torch.bfloat16)


def as32(tensor: Tensor) -> Tensor:
    """Half-precision tensors as float32; others as they are."""
    return tensor.float() if tensor.dtype in HALF else tensor


TOGETHER = 1 << 13
"""Entries of a row that are copied at once."""


def matmul32(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` with sums in float32 or better, batch dimensions broadcast.

    A product of two half-precision numbers is exact in float32. Where the device multiplies them with float32 results
    they stay as they are; elsewhere they are turned into float32 here and nowhere else.
    """
    if left.dtype in HALF and left.dtype == right.dtype and left.is_cuda:
        shape = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        a, b = (t.expand(*shape, *t.shape[-2:]).reshape(-1, *t.shape[-2:]) for t in (left, right))
        return torch.bmm(a, b, out_dtype=torch.float32).reshape(*shape, left.shape[-2], right.shape[-1])
    left, right = as32(left), as32(right)
    if left.dtype != right.dtype:
        common = torch.promote_types(left.dtype, right.dtype)
        left, right = left.to(common), right.to(common)
    if left.dim() == right.dim() == 3 and len(left) == len(right):
        return torch.bmm(left, right)  # what @ makes of it by five launches more
    if left.dim() == 3 and right.dim() == 2 and not left.is_cuda and left.stride(0) != left.shape[1] * left.stride(1):
        return _all_rows_at_once(left, right)
    return left @ right


def _all_rows_at_once(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` where ``left [R, P, k]`` was cut out of more positions: ``@`` would read ``right [k, n]`` anew
    for each of the R rows (a head's ``k`` is the vocabulary). A slice of ``k`` at a time is copied to lie together."""
    parts = zip(left.split(TOGETHER, -1), right.split(TOGETHER), strict=True)
    first, *rest = (a.flatten(0, 1) @ b for a, b in parts)
    for product in rest:
        first += product
    return first.unflatten(0, left.shape[:2])


SUMMED = 512
"""Products that are summed up in the type of their factors; such sums are added up in float64."""
NARROW = 64
"""Narrower parts than this are slow."""
STREAMED = 1 << 22
"""Numbers from which on a GPU multiplies entry by entry: its batched products of two rows are slow."""


def dots(left: Tensor, right: Tensor) -> Tensor:
    """``[G, n, m]`` (float64): products of ``left [n, G, k]`` with ``right [m, G, k]`` within groups."""
    if left is right:
        left = right = as32(left)
    elif left.dtype != right.dtype:
        left, right = left.double(), right.double()
    else:
        left, right = as32(left), as32(right)
    if left.is_cuda and left.numel() > STREAMED:
        return _entry_by_entry(left, right)
    size = left.shape[-1]
    if size <= SUMMED:
        return _summed(left, right, size)
    if (width := gcd(size, SUMMED)) >= NARROW:
        return _summed(left, right, width)
    whole = size - size % SUMMED
    parts = ((left[..., some], right[..., some]) for some in (slice(whole), slice(whole, None)))
    begun, rest = ((a, a if left is right else b) for a, b in parts)
    return _summed(*begun, SUMMED) + _summed(*rest, size - whole)


def _summed(left: Tensor, right: Tensor, width: int) -> Tensor:
    """``dots`` where ``width`` divides ``k``: one batched product of parts so wide."""
    (n, groups, size), m = left.shape, right.shape[0]
    if not size:
        return left.new_zeros(groups, n, m, dtype=torch.float64)
    parts = (-1, groups * (size // width), width)
    a = _exact(left).reshape(n, *parts[1:]).transpose(0, 1)
    b = a if left is right else _exact(right).reshape(m, *parts[1:]).transpose(0, 1)
    found = torch.bmm(a, b.mT)
    if size == width:
        return found.double()
    return found.view(groups, -1, n, m).sum(1, dtype=torch.float64)


def _exact(tensor: Tensor) -> Tensor:
    """On a GPU in float64, since whoever trains there may let float32 products be rounded to TF32."""
    return tensor.double() if tensor.is_cuda else tensor


def _entry_by_entry(left: Tensor, right: Tensor) -> Tensor:
    symmetric = left is right
    n, m = len(left), len(right)
    answer = left.new_empty(left.shape[1], n, m, dtype=torch.float64)
    for i in range(n):
        for j in range(m):
            if symmetric and j < i:
                answer[:, i, j] = answer[:, j, i]
            else:
                answer[:, i, j] = (left[i] * right[j]).sum(-1, dtype=torch.float64)
    return answer
