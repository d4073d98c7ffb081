"""The fused pass with what is known of the weight before the backward: its metric, and directions of its shape.

As ``pair_kernel`` does, a program forms its tile of both rows' gradients of a pair in registers. It then reads the same
tile of the metric ``P`` and of each direction ``D``, and adds ``⟨g_w, P g_w⟩``, ``⟨g_w, P g_l⟩``, ``⟨g_l, P g_l⟩`` and
``⟨g_i, D⟩`` to the three plain products: one tile more at a time, never kept over the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import HALF
from dyn_probe.engine.kernels import pair_kernel
from dyn_probe.engine.kernels.pair_kernel import Tile, sizes, tile_of, whole_rows
from dyn_probe.engine.kernels.trusted import Trusted, on_device

try:
    import triton
    import triton.language as tl
except ImportError:  # a build of torch without it
    triton = None

TILES: dict[int, Tile] = {
    80: Tile(64, 64, 64, 8, 3),
    90: Tile(128, 64, 64, 8, 3),
    100: Tile(128, 64, 64, 8, 3),
}
"""Compute capability → tile; none of them spills registers (``benchmarks/compiled.py``)."""
TRUSTED = Trusted("the fused kernel with a metric", "blocks are, which take longer")
PLAIN, OWN = 3, 6
"""Numbers of a pair before those in the metric, and before those along directions."""


def known_products(
    inputs: Tensor,
    grads: Tensor,
    metric: Tensor | None,
    directions: Sequence[Tensor],
    slow: Callable[[], Tensor],
    live: Tensor | None = None,
    sum_up: bool = False,
) -> tuple[Tensor, Tensor | None] | None:
    """``[B, 6 + 2D]`` (float64; ``columns``), and ``Σ_r G_r [p, q]`` where it is wanted and the kernel gave the answer.
    None where the kernel does not run.

    Args:
        inputs: ``A [2B, T, q]``, chosen rows first.
        grads: ``B [2B, T, p]``.
        metric: ``P [p, q]``; None for 1.
        directions: ``D`` of them, ``[p, q]`` each.
        slow: the same by other means; asked until it has been finite once.
        live: as for ``pair_kernel.pair_products``.
        sum_up: as there.
    """
    if triton is None or not inputs.is_cuda or inputs.dtype not in HALF or grads.dtype != inputs.dtype:
        return None
    totals: list[Tensor | None] = [None]

    def fast() -> Tensor:
        found, totals[0] = launched(inputs, grads, metric, directions, live, sum_up)
        return found

    key = (inputs.device, inputs.dtype, tile_of(inputs, grads, TILES), metric is None, len(directions), sum_up)
    found = TRUSTED(key, fast, slow, lambda wanted: scales(wanted, directions))
    return None if found is None else (found, totals[0])


def columns(plain: Tensor, weighed: Tensor, along: Tensor) -> Tensor:
    """One table ``[B, 6 + 2D]`` of plain products and those in the metric ``[B, 2, 2]``, and ``along [2B, D]``."""
    own = [torch.stack([g[:, 0, 0], g[:, 0, 1], g[:, 1, 1]], 1) for g in (plain, weighed)]
    return torch.cat([*own, *along.double().unflatten(0, (2, -1)).unbind(0)], 1)


def parts(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``columns`` undone."""
    count = (found.shape[1] - OWN) // 2
    own = [found[:, [k, k + 1, k + 1, k + 2]].unflatten(1, (2, 2)) for k in (0, PLAIN)]
    return own[0], own[1], torch.cat([found[:, OWN : OWN + count], found[:, OWN + count :]])


def scales(wanted: Tensor, directions: Sequence[Tensor]) -> Tensor:
    """What errors in ``wanted [B, 6 + 2D]`` are measured by: products of norms."""
    plain, weighed, _ = parts(wanted)
    norms = plain.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()  # [B, 2]
    lengths = torch.stack([d.double().norm() for d in directions]) if directions else norms.new_empty(0)
    along = (norms[:, :, None] * lengths.to(norms)).transpose(0, 1).flatten(0, 1)
    return columns(sizes(plain), sizes(weighed), along)


def launched(
    inputs: Tensor,
    grads: Tensor,
    metric: Tensor | None,
    directions: Sequence[Tensor],
    live: Tensor | None,
    sum_up: bool,
) -> tuple[Tensor, Tensor | None]:
    """One launch: ``[B, 6 + 2D]`` and, if wanted, ``[p, q]``."""
    if grads.shape[2] < inputs.shape[2] and grads.shape[2] < 128:  # the narrow side is that of the inputs
        turned = None if metric is None else metric.mT
        found, total = launched(grads, inputs, turned, [d.mT for d in directions], live, sum_up)
        return found, None if total is None else total.mT
    (_, positions, q), p, pairs = inputs.shape, grads.shape[2], len(inputs) // 2
    tile, count = tile_of(inputs, grads, TILES), OWN + 2 * len(directions)
    tiles = triton.cdiv(p, tile.outputs) * triton.cdiv(q, tile.inputs)
    splits = max(1, min(pairs, pair_kernel.FILLED // tiles))
    partial = inputs.new_empty(tiles, pairs, count, dtype=torch.float32)
    total = inputs.new_empty(splits, p, q, dtype=torch.float32) if sum_up else partial
    along = torch.stack([d.float() for d in directions]) if directions else partial
    with on_device(inputs):
        known_kernel[(tiles, splits)](
            inputs.contiguous(), grads.contiguous(), partial,
            whole_rows(len(inputs), positions, inputs.device) if live is None else live, total,
            partial if metric is None else metric.float().contiguous(), along, positions, p, q, pairs,
            BLOCK_P=tile.outputs, BLOCK_Q=tile.inputs, BLOCK_T=tile.positions, TOTAL=sum_up,
            METRIC=metric is not None, DIRECTIONS=len(directions), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    found = partial.sum(0, dtype=torch.float64)
    if metric is None:
        found[:, PLAIN:OWN] = found[:, :PLAIN]
    if not sum_up:
        return found, None
    return found, total[0] if splits == 1 else total.sum(0)


if triton is not None:
    row_block = pair_kernel.row_block

    @triton.jit
    def known_kernel(  # type: ignore[no-untyped-def]
        inputs, grads, partial, live, total, metric, along, positions, p, q, pairs,
        BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, TOTAL: tl.constexpr,
        METRIC: tl.constexpr, DIRECTIONS: tl.constexpr,
    ):  # fmt: skip
        """One tile of the weight, for every so-many-th pair; sums of the padding are 0."""
        tile, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
        across = tl.cdiv(q, BLOCK_Q)
        at_p = (tile // across) * BLOCK_P + tl.arange(0, BLOCK_P)
        at_q = (tile % across) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        inside = (at_p[:, None] < p) & (at_q[None, :] < q)
        place = at_p.to(tl.int64)[:, None] * q + at_q[None, :]
        if TOTAL:
            summed = tl.zeros((BLOCK_P, BLOCK_Q), dtype=tl.float32)
        for k in range(split, pairs, splits):
            chosen = row_block(inputs, grads, live, k, positions, p, q, at_p, at_q, BLOCK_P, BLOCK_Q, BLOCK_T)
            rejected = row_block(inputs, grads, live, k + pairs, positions, p, q, at_p, at_q, BLOCK_P, BLOCK_Q, BLOCK_T)
            to = partial + (tile.to(tl.int64) * pairs + k) * (6 + 2 * DIRECTIONS)
            tl.store(to, tl.sum(chosen * chosen))
            tl.store(to + 1, tl.sum(chosen * rejected))
            tl.store(to + 2, tl.sum(rejected * rejected))
            if METRIC:
                weight = tl.load(metric + place, mask=inside, other=0.0)
                tl.store(to + 3, tl.sum(chosen * chosen * weight))
                tl.store(to + 4, tl.sum(chosen * rejected * weight))
                tl.store(to + 5, tl.sum(rejected * rejected * weight))
            else:
                for j in range(3, 6):
                    tl.store(to + j, 0.0)
            for d in range(DIRECTIONS):
                step = tl.load(along + tl.zeros((), dtype=tl.int64) + d * p * q + place, mask=inside, other=0.0)
                tl.store(to + 6 + d, tl.sum(chosen * step))
                tl.store(to + 6 + DIRECTIONS + d, tl.sum(rejected * step))
            if TOTAL:
                summed += chosen + rejected
        if TOTAL:
            at = total + split.to(tl.int64) * p * q + place
            tl.store(at, summed, mask=inside)


def compiled(architecture: int, dtype: str = "bf16", narrow: int = 0, sum_up: bool = False, directions: int = 2) -> Any:
    """Triton's kernel compiled for a GPU that need not be there; as ``pair_kernel.compiled``."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tile = pair_kernel.narrowed(TILES[architecture], narrow) if narrow else TILES[architecture]
    signature = {"inputs": f"*{dtype}", "grads": f"*{dtype}", "partial": "*fp32", "live": "*i32", "total": "*fp32"}
    signature |= {"metric": "*fp32", "along": "*fp32"}
    signature |= dict.fromkeys(("positions", "p", "q", "pairs"), "i32")
    constants = {"BLOCK_P": tile.outputs, "BLOCK_Q": tile.inputs, "BLOCK_T": tile.positions}
    constants |= {"TOTAL": sum_up, "METRIC": True, "DIRECTIONS": directions}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(n,): [["tt.divisibility", 16]] for n in (0, 1, 2, 3, 4, 5, 6, 8, 9)}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    source = ASTSource(known_kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
