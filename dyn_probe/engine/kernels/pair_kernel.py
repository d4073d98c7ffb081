"""The fused pass over one large linear use on a GPU: a pair's three inner products, the gradients formed tile by tile.

With ``A [2B, T, q]`` the inputs, ``B [2B, T, p]`` the output-gradients and ``G_r = B_rᵀ A_r``, one pass over the tiles
``[p, q]`` gives ``‖G_w‖²``, ``‖G_l‖²`` and ``⟨G_w, G_l⟩`` of every pair. A tile of a row's gradient stands in registers
only: products of half-precision numbers are summed in float32 on tensor cores, and neither the gradients nor a float32
copy of an activation reach memory. Every tile writes its sums to a buffer that is added up afterwards, so that the
answer is the same every time. What the same tiles add up to over all rows is the weight's gradient: it can be had from
the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import HALF
from dyn_probe.engine.kernels.trusted import Trusted, on_device

try:
    import triton
    import triton.language as tl
except ImportError:  # a build of torch without it
    triton = None


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
    90: Tile(128, 128, 64, 8, 4),
    100: Tile(128, 128, 64, 8, 4),
}
"""Compute capability → tile; none of them spills registers (``benchmarks/compiled.py``)."""
INTERPRETED = Tile(32, 32, 16, 4, 1)
"""Where Triton's interpreter runs on a CPU."""
NARROWEST = 16
"""Inputs of the smallest tile: of an adapter's factors one side is its rank."""
FILLED = 264
"""Programs that fill a large GPU twice; where there are fewer tiles, pairs are divided among programs."""
TRUSTED = Trusted("the fused kernel", "blocks are, which take longer")


def pair_products(
    inputs: Tensor, grads: Tensor, slow: Callable[[], Tensor], live: Tensor | None = None, sum_up: bool = False
) -> tuple[Tensor, Tensor | None] | None:
    """``[B, 2, 2]`` (float64) inner products within each pair; None where the kernel does not run.

    Args:
        inputs: ``A [2B, T, q]``, chosen rows first.
        grads: ``B [2B, T, p]``.
        slow: the same by other means; asked until it has been finite once.
        live: ``[2B, 2]`` (int32) first position with a gradient and one past the last, where that is known.
        sum_up: also give ``Σ_r G_r [p, q]`` (float32) of the same pass, where the kernel gave the answer.
    """
    if triton is None or not inputs.is_cuda or inputs.dtype not in HALF or grads.dtype != inputs.dtype:
        return None
    totals: list[Tensor | None] = [None]

    def fast() -> Tensor:
        found, totals[0] = launched(inputs, grads, live, sum_up)
        return found

    found = TRUSTED((inputs.device, inputs.dtype, tile_of(inputs, grads), sum_up), fast, slow, sizes)
    return None if found is None else (found, totals[0])


def sizes(products: Tensor) -> Tensor:
    """What an error in ``products [B, 2, 2]`` is measured by: the products of the two norms."""
    norms = products.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    return norms[:, :, None] * norms[:, None]


def entries(inputs: Tensor, grads: Tensor, live: Tensor | None = None) -> Tensor:
    """``[B, 2, 2]`` (float64) by the kernel."""
    return launched(inputs, grads, live, False)[0]


def entries_and_total(inputs: Tensor, grads: Tensor, live: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same, and ``Σ_r G_r [p, q]`` (float32) of the same pass."""
    found, total = launched(inputs, grads, live, True)
    assert total is not None
    return found, total


def launched(inputs: Tensor, grads: Tensor, live: Tensor | None, sum_up: bool) -> tuple[Tensor, Tensor | None]:
    """One launch: ``[B, 2, 2]`` and, if wanted, ``[p, q]``."""
    if grads.shape[2] < inputs.shape[2] and grads.shape[2] < 128:  # the narrow side is that of the inputs
        found, total = launched(grads, inputs, live, sum_up)
        return found, None if total is None else total.mT
    (_, positions, q), p, pairs = inputs.shape, grads.shape[2], len(inputs) // 2
    tile = tile_of(inputs, grads)
    tiles = triton.cdiv(p, tile.outputs) * triton.cdiv(q, tile.inputs)
    splits = max(1, min(pairs, FILLED // tiles))
    partial = inputs.new_empty(tiles, pairs, 4, dtype=torch.float32)
    total = inputs.new_empty(splits, p, q, dtype=torch.float32) if sum_up else partial
    live = whole_rows(len(inputs), positions, inputs.device) if live is None else live
    with on_device(inputs):
        pair_kernel[(tiles, splits)](
            inputs.contiguous(), grads.contiguous(), partial, live, total, positions, p, q, pairs,
            BLOCK_P=tile.outputs, BLOCK_Q=tile.inputs, BLOCK_T=tile.positions, TOTAL=sum_up,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    found = partial.sum(0, dtype=torch.float64).view(pairs, 2, 2)
    if not sum_up:
        return found, None
    return found, total[0] if splits == 1 else total.sum(0)


@lru_cache(maxsize=64)
def whole_rows(rows: int, positions: int, device: torch.device) -> Tensor:
    """``[rows, 2]``: every position may have a gradient. (Read by the kernel all the same: told the bounds of its loop
    beforehand, the compiler takes more registers than there are.)"""
    found = torch.zeros(rows, 2, dtype=torch.int32, device=device)  # made there: a copy would stop the device
    found[:, 1] = positions
    return found


def tile_of(inputs: Tensor, grads: Tensor, tiles: Mapping[int, Tile] = TILES) -> Tile:
    """The tile of a table for these sizes on their device."""
    tile = tile_for(inputs.device, tiles)
    narrow = min(inputs.shape[2], grads.shape[2])
    if narrow >= tile.inputs:
        return tile
    return narrowed(tile, max(NARROWEST, triton.next_power_of_2(narrow)))


def narrowed(tile: Tile, inputs: int) -> Tile:
    """The same tile with fewer inputs."""
    return Tile(tile.outputs, inputs, tile.positions, 4 if inputs <= 32 else tile.warps, tile.stages)


def tile_for(device: torch.device, tiles: Mapping[int, Tile]) -> Tile:
    """The tile of the newest architecture in the table that is not newer than the device."""
    if device.type != "cuda":
        return INTERPRETED
    major, minor = torch.cuda.get_device_capability(device)
    return tiles[max((known for known in tiles if known <= 10 * major + minor), default=min(tiles))]


if triton is not None:

    @triton.jit
    def row_block(  # type: ignore[no-untyped-def]
        inputs, grads, live, row, positions, p, q, at_p, at_q, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
        BLOCK_T: tl.constexpr,
    ):  # fmt: skip
        """One tile of ``B_rᵀ A_r``, ``[BLOCK_P, BLOCK_Q]``."""
        block = tl.zeros((BLOCK_P, BLOCK_Q), dtype=tl.float32)
        first, last = tl.load(live + 2 * row), tl.load(live + 2 * row + 1)
        row = tl.zeros((), dtype=tl.int64) + row  # offsets may be large
        first_a = inputs + row * positions * q
        first_b = grads + row * positions * p
        at = tl.arange(0, BLOCK_T)
        for start in range(first, last, BLOCK_T):
            inside = start + at[:, None] < last
            begin = tl.zeros((), dtype=tl.int64) + start
            from_a, from_b = first_a + begin * q, first_b + begin * p
            a = tl.load(from_a + at[:, None] * q + at_q[None, :], mask=inside & (at_q[None, :] < q), other=0.0)
            b = tl.load(from_b + at[:, None] * p + at_p[None, :], mask=inside & (at_p[None, :] < p), other=0.0)
            block = tl.dot(tl.trans(b), a, acc=block)
        return block

    @triton.jit
    def pair_kernel(  # type: ignore[no-untyped-def]
        inputs, grads, partial, live, total, positions, p, q, pairs,
        BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, TOTAL: tl.constexpr,
    ):  # fmt: skip
        """One tile of the weight, for every so-many-th pair; sums of the padding are 0."""
        tile, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
        across = tl.cdiv(q, BLOCK_Q)
        at_p = (tile // across) * BLOCK_P + tl.arange(0, BLOCK_P)
        at_q = (tile % across) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        if TOTAL:
            summed = tl.zeros((BLOCK_P, BLOCK_Q), dtype=tl.float32)
        for k in range(split, pairs, splits):
            chosen = row_block(inputs, grads, live, k, positions, p, q, at_p, at_q, BLOCK_P, BLOCK_Q, BLOCK_T)
            rejected = row_block(inputs, grads, live, k + pairs, positions, p, q, at_p, at_q, BLOCK_P, BLOCK_Q, BLOCK_T)
            to = partial + (tile.to(tl.int64) * pairs + k) * 4
            mixed = tl.sum(chosen * rejected)
            tl.store(to, tl.sum(chosen * chosen))
            tl.store(to + 1, mixed)
            tl.store(to + 2, mixed)
            tl.store(to + 3, tl.sum(rejected * rejected))
            if TOTAL:
                summed += chosen + rejected
        if TOTAL:
            at = total + split.to(tl.int64) * p * q + at_p.to(tl.int64)[:, None] * q + at_q[None, :]
            tl.store(at, summed, mask=(at_p[:, None] < p) & (at_q[None, :] < q))


def compiled(architecture: int, dtype: str = "bf16", narrow: int = 0, sum_up: bool = False) -> Any:
    """Triton's kernel compiled for a GPU that need not be there; its ``asm`` has ``ptx`` and ``cubin``.

    Args:
        architecture: compute capability, 80 for 8.0.
        dtype: Triton's name of the activations' type.
        narrow: inputs of a narrow tile; 0 for the whole one.
        sum_up: whether the weight's gradient is made too.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tile = TILES[architecture]
    tile = narrowed(tile, narrow) if narrow else tile
    signature = {"inputs": f"*{dtype}", "grads": f"*{dtype}", "partial": "*fp32"}
    signature |= {"live": "*i32", "total": "*fp32"}
    signature |= dict.fromkeys(("positions", "p", "q", "pairs"), "i32")
    constants = {"BLOCK_P": tile.outputs, "BLOCK_Q": tile.inputs, "BLOCK_T": tile.positions}
    constants |= {"TOTAL": sum_up}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(n,): [["tt.divisibility", 16]] for n in (0, 1, 2, 3, 4, 6, 7)}
    source = ASTSource(pair_kernel, signature, constants, aligned)
    return triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": tile.warps, "num_stages": tile.stages}
    )
