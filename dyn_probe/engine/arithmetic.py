"""Products whose sums run in float32 or better, whatever the type of their factors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def autocast_type(device: str) -> torch.dtype | None:
    """The type of autocast for this kind of device, None where it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def computing_in(dtype: torch.dtype | None, device: str) -> torch.autocast:
    """Autocast as ``autocast_type`` found it."""
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)


@contextmanager
def exact_products(device: str) -> Iterator[None]:
    """No graph, and no autocast of whoever is around (a training loop may keep it on to the end of its step): products
    are made in the types of their factors."""
    with torch.no_grad(), torch.autocast(device, enabled=False):
        yield


HALF = (torch.float16, torch.bfloat16)


def as32(tensor: Tensor) -> Tensor:
    """Half-precision tensors as float32; others as they are."""
    return tensor.float() if tensor.dtype in HALF else tensor


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
    common = torch.promote_types(left.dtype, right.dtype)
    return left.to(common) @ right.to(common)


def dots(left: Tensor, right: Tensor) -> Tensor:
    """``[…, G, n, m]`` (float64): products of ``left […, n, G, k]`` with ``right […, m, G, k]`` within groups."""
    if left.shape[-2] == 1:
        return matmul32(left[..., 0, :], right[..., 0, :].mT).double().unsqueeze(-3)
    symmetric = left is right
    left, right = as32(left), as32(right)
    n, m = left.shape[-3], right.shape[-3]
    answer = left.new_empty(*left.shape[:-3], left.shape[-2], n, m, dtype=torch.float64)
    for i in range(n):
        for j in range(m):
            if symmetric and j < i:
                answer[..., i, j] = answer[..., j, i]
            else:
                products = left[..., i, :, :] * right[..., j, :, :]
                answer[..., i, j] = products.sum(-1, dtype=torch.float64)
    return answer
