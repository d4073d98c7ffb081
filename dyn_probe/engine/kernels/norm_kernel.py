"""The gradients of a norm's scale and bias on a GPU, row by row of the batch, in one pass over its activations.

``Σ_t B[t] ∘ x̂[t]`` and ``Σ_t B[t]`` for every row, with ``x̂`` the input normalised over its features (LayerNorm: less
its mean). Plain torch makes five float32 copies of the activations for it; here each is read once, in its own type.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dyn_probe.engine.kernels.trusted import Trusted, on_device

try:
    import triton
    import triton.language as tl
except ImportError:  # a build of torch without it
    triton = None

WIDEST = 16384
"""Features of one position, at most: they stand in registers."""
NUMBERS = 8192
"""Numbers that a program holds at once."""
PROGRAMS = 264
"""Programs that fill a large GPU twice: positions are divided among them."""
TYPES = (torch.float32, torch.float16, torch.bfloat16)
TRUSTED = Trusted("the fused kernel for norms", "plain operations are, which take longer")


def norm_sums(inputs: Tensor, grads: Tensor, layer: bool, eps: float, slow: Callable[[], Tensor]) -> Tensor | None:
    """``[2, R, n]`` (float32) ``Σ_t B ∘ x̂`` and ``Σ_t B``; None where the kernel does not run.

    Args:
        inputs: ``[R, T, n]`` what the norm was given.
        grads: ``B [R, T, n]``.
        layer: whether the mean is taken off (LayerNorm), or not (RMSNorm).
        eps: what is added to the variance.
        slow: the same by other means.
    """
    fits = inputs.shape == grads.shape and inputs.shape[2] <= WIDEST and {inputs.dtype, grads.dtype} <= set(TYPES)
    if triton is None or not inputs.is_cuda or not fits:
        return None
    key = (inputs.device, inputs.dtype, grads.dtype, layer)
    return TRUSTED(key, lambda: sums(inputs, grads, layer, eps), slow, lambda wanted: wanted.norm(dim=-1, keepdim=True))


def sums(inputs: Tensor, grads: Tensor, layer: bool, eps: float) -> Tensor:
    """``[2, R, n]`` by the kernel."""
    rows, positions, features = inputs.shape
    block = triton.next_power_of_2(features)
    at_once = max(1, NUMBERS // block)
    parts = max(1, min(triton.cdiv(positions, at_once), PROGRAMS // rows))
    chunk = triton.cdiv(triton.cdiv(positions, parts), at_once) * at_once
    parts = triton.cdiv(positions, chunk)
    partial = inputs.new_empty(2, rows, parts, features, dtype=torch.float32)
    with on_device(inputs):
        norm_kernel[(rows, parts)](
            inputs.contiguous(), grads.contiguous(), partial, positions, features, chunk, float(eps),
            BLOCK=block, AT_ONCE=at_once, LAYER=layer, num_warps=8,
        )  # fmt: skip
    return partial[:, :, 0] if parts == 1 else partial.sum(2)


if triton is not None:

    @triton.jit
    def norm_kernel(  # type: ignore[no-untyped-def]
        inputs, grads, partial, positions, features, chunk, eps,
        BLOCK: tl.constexpr, AT_ONCE: tl.constexpr, LAYER: tl.constexpr,
    ):  # fmt: skip
        """One part of one row's positions."""
        row, part, rows, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(0), tl.num_programs(1)
        at = tl.arange(0, BLOCK)
        inside = at[None, :] < features
        scale, bias = tl.zeros((BLOCK,), dtype=tl.float32), tl.zeros((BLOCK,), dtype=tl.float32)
        before = (tl.zeros((), dtype=tl.int64) + row) * positions
        last = tl.minimum((part + 1) * chunk, positions)
        for start in range(part * chunk, last, AT_ONCE):
            at_t = start + tl.arange(0, AT_ONCE)
            where = (before + at_t)[:, None] * features + at[None, :]
            there = inside & (at_t[:, None] < last)
            x = tl.load(inputs + where, mask=there, other=0.0).to(tl.float32)
            b = tl.load(grads + where, mask=there, other=0.0).to(tl.float32)
            if LAYER:
                x = tl.where(there, x - (tl.sum(x, 1) / features)[:, None], 0.0)
            deviation = tl.sqrt(tl.sum(x * x, 1) / features + eps)
            hats = tl.where(there, x / deviation[:, None], 0.0)  # beyond the end there is nothing, not 0 / 0
            scale += tl.sum(b * hats, 0)
            bias += tl.sum(b, 0)
        to = partial + (row * parts + part) * features + at
        tl.store(to, scale, mask=at < features)
        tl.store(to + rows * parts * features, bias, mask=at < features)
