"""The fused pass over one large linear use on a GPU: a pair's three inner products, the gradients formed tile by tile.

With ``A [2B, T, q]`` the inputs, ``B [2B, T, p]`` the output-gradients and ``G_r = B_rᵀ A_r``, one pass over the tiles
``[p, q]`` gives ``‖G_w‖²``, ``‖G_l‖²`` and ``⟨G_w, G_l⟩`` of every pair. A tile of a row's gradient stands in registers
only: products of half-precision numbers are summed in float32 on tensor cores, and neither the gradients nor a float32
copy of an activation reach memory. Every tile writes its sums to a buffer that is added up afterwards, so that the
answer is the same every time.

The first call on a device is compared with plain blocks on the same input; where it differs, or Triton cannot run
there, that is said once and blocks are used. Products that are not finite (usual in the first steps of float16 with a
loss scale) compare nothing: the next call does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import HALF

try:
    import triton
    import triton.language as tl
except ImportError:  # a build of torch without it
    triton = None

AGREE = 1e-4
"""Largest difference from blocks, relative to the norms: what another order of float32 sums may make."""


@dataclass(frozen=True)
class Tile:
    """Sizes of one program's work: outputs, inputs, positions in a step, warps, stages of the pipeline."""

    outputs: int
    inputs: int
    positions: int
    warps: int
    stages: int


TILES: dict[int, Tile] = {
    80: Tile(64, 64, 64, 4, 3),
    90: Tile(128, 128, 64, 8, 3),
    100: Tile(128, 128, 64, 8, 3),
}
"""Compute capability → tile; none of them spills registers (``benchmarks/compiled.py``)."""
INTERPRETED = Tile(32, 32, 16, 4, 1)
"""Where Triton's interpreter runs on a CPU."""
FILLED = 264
"""Programs that fill a large GPU twice; where there are fewer tiles, pairs are divided among programs."""
_USABLE: dict[tuple[torch.device, torch.dtype], bool] = {}


def pair_products(inputs: Tensor, grads: Tensor, slow: Callable[[], Tensor]) -> Tensor | None:
    """``[B, 2, 2]`` (float64) inner products within each pair; None where the kernel does not run.

    Args:
        inputs: ``A [2B, T, q]``, chosen rows first.
        grads: ``B [2B, T, p]``.
        slow: the same by other means; asked until it has been finite once.
    """
    if triton is None or not inputs.is_cuda or inputs.dtype not in HALF or grads.dtype != inputs.dtype:
        return None
    return compared_once((inputs.device, inputs.dtype), lambda: entries(inputs, grads), slow)


def compared_once(
    key: tuple[torch.device, torch.dtype], fused: Callable[[], Tensor], slow: Callable[[], Tensor]
) -> Tensor | None:
    """``[B, 2, 2]`` by the kernel where it has agreed with blocks on this device and type; None where it did not.

    What blocks give is returned, and nothing is decided, as long as it is not finite.
    """
    if key not in _USABLE:
        wanted = slow()
        if not bool(wanted.isfinite().all()):
            return wanted
        _USABLE[key] = agrees(fused, wanted)
    return fused() if _USABLE[key] else None


def agrees(fused: Callable[[], Tensor], wanted: Tensor) -> bool:
    """Whether the kernel runs and gives these ``[B, 2, 2]``; warns where not."""
    try:
        found = fused()
    except Exception as error:  # a compiler for a device that nobody has tried yet may raise anything
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    else:
        norms = wanted.diagonal(dim1=1, dim2=2).sqrt()
        missed = (found - wanted).abs() / (norms[:, :, None] * norms[:, None]).clamp(min=1e-300)
        worst = float(missed.nan_to_num(float("inf")).max())
        if worst <= AGREE:
            return True
        said = f"it differs from plain blocks by {worst:.1e}"
    warnings.warn(f"the fused kernel is not used on this device ({said}); blocks are, which take longer", stacklevel=2)
    return False


def entries(inputs: Tensor, grads: Tensor) -> Tensor:
    """``[B, 2, 2]`` (float64) by the kernel."""
    (_, positions, q), p, pairs = inputs.shape, grads.shape[2], len(inputs) // 2
    tile = tile_for(inputs.device)
    tiles = triton.cdiv(p, tile.outputs) * triton.cdiv(q, tile.inputs)
    partial = inputs.new_empty(tiles, pairs, 3, dtype=torch.float32)
    grid = (tiles, max(1, min(pairs, FILLED // tiles)))
    pair_kernel[grid](
        inputs.contiguous(), grads.contiguous(), partial, positions, p, q, pairs,
        BLOCK_P=tile.outputs, BLOCK_Q=tile.inputs, BLOCK_T=tile.positions,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    chosen, rejected, inner = partial.sum(0, dtype=torch.float64).unbind(1)
    return torch.stack([chosen, inner, inner, rejected], 1).unflatten(1, (2, 2))


def tile_for(device: torch.device) -> Tile:
    """The tile of the newest architecture in the table that is not newer than the device."""
    if device.type != "cuda":
        return INTERPRETED
    major, minor = torch.cuda.get_device_capability(device)
    return TILES[max((known for known in TILES if known <= 10 * major + minor), default=min(TILES))]


if triton is not None:

    @triton.jit
    def row_block(  # type: ignore[no-untyped-def]
        inputs, grads, row, positions, p, q, at_p, at_q, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
        BLOCK_T: tl.constexpr,
    ):  # fmt: skip
        """One tile of ``B_rᵀ A_r``, ``[BLOCK_P, BLOCK_Q]``."""
        block = tl.zeros((BLOCK_P, BLOCK_Q), dtype=tl.float32)
        row = tl.zeros((), dtype=tl.int64) + row  # offsets may be large
        first_a = inputs + row * positions * q
        first_b = grads + row * positions * p
        for start in range(0, positions, BLOCK_T):
            at_t = start + tl.arange(0, BLOCK_T)
            inside = at_t[:, None] < positions
            a = tl.load(first_a + at_t[:, None] * q + at_q[None, :], mask=inside & (at_q[None, :] < q), other=0.0)
            b = tl.load(first_b + at_t[:, None] * p + at_p[None, :], mask=inside & (at_p[None, :] < p), other=0.0)
            block = tl.dot(tl.trans(b), a, acc=block)
        return block

    @triton.jit
    def pair_kernel(  # type: ignore[no-untyped-def]
        inputs, grads, partial, positions, p, q, pairs,
        BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr,
    ):  # fmt: skip
        """One tile of the weight, for every so-many-th pair; sums of the padding are 0."""
        tile, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
        across = tl.cdiv(q, BLOCK_Q)
        at_p = (tile // across) * BLOCK_P + tl.arange(0, BLOCK_P)
        at_q = (tile % across) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        for k in range(split, pairs, splits):
            chosen = row_block(inputs, grads, k, positions, p, q, at_p, at_q, BLOCK_P, BLOCK_Q, BLOCK_T)
            rejected = row_block(inputs, grads, k + pairs, positions, p, q, at_p, at_q, BLOCK_P, BLOCK_Q, BLOCK_T)
            to = partial + (tile.to(tl.int64) * pairs + k) * 3
            tl.store(to, tl.sum(chosen * chosen))
            tl.store(to + 1, tl.sum(rejected * rejected))
            tl.store(to + 2, tl.sum(chosen * rejected))


def compiled(architecture: int, dtype: str = "bf16") -> Any:
    """Triton's kernel compiled for a GPU that need not be there; its ``asm`` has ``ptx`` and ``cubin``.

    Args:
        architecture: compute capability, 80 for 8.0.
        dtype: Triton's name of the activations' type.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tile = TILES[architecture]
    signature = {"inputs": f"*{dtype}", "grads": f"*{dtype}", "partial": "*fp32"}
    signature |= dict.fromkeys(("positions", "p", "q", "pairs"), "i32")
    constants = {"BLOCK_P": tile.outputs, "BLOCK_Q": tile.inputs, "BLOCK_T": tile.positions}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(n,): [["tt.divisibility", 16]] for n in (0, 1, 2, 4, 5)}
    source = ASTSource(pair_kernel, signature, constants, aligned)
    return triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": tile.warps, "num_stages": tile.stages}
    )
