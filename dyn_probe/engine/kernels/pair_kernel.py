"""The fused pass over one large linear use on a GPU: a pair's three inner products, the gradients formed tile by tile.

With ``A [2B, T, q]`` the inputs, ``B [2B, T, p]`` the output-gradients and ``G_r = B_rᵀ A_r``, one pass over the tiles
``[p, q]`` gives ``‖G_w‖²``, ``‖G_l‖²`` and ``⟨G_w, G_l⟩`` of every pair. A tile of a row's gradient stands in registers
only: products of half-precision numbers are summed in float32 on tensor cores, and neither the gradients nor a float32
copy of an activation reach memory. Every tile writes its sums to a buffer that is added up afterwards, so that the
answer is the same every time.

What the same tiles add up to over all rows is the weight's gradient: it can be had from the same pass. So can products
with what is known of the weight before the backward, its metric ``P`` and directions ``D`` of its shape: the same tile
of each is read, one at a time and never kept over the pairs, for ``⟨g_w, P g_w⟩``, ``⟨g_w, P g_l⟩``, ``⟨g_l, P g_l⟩``
and ``⟨g_i, D⟩``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

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
KNOWN_TILES: dict[int, Tile] = {
    80: Tile(64, 64, 64, 8, 3),
    90: Tile(128, 64, 64, 8, 3),
    100: Tile(128, 64, 64, 8, 3),
}
"""The same with a metric or directions."""
INTERPRETED = Tile(32, 32, 16, 4, 1)
"""Where Triton's interpreter runs on a CPU."""
NARROWEST = 16
"""Inputs of the smallest tile: of an adapter's factors one side is its rank."""
FILLED = 264
"""Programs that fill a large GPU twice; where there are fewer tiles, pairs are divided among programs."""
TRUSTED = Trusted("the fused kernel", "blocks are, which take longer")
KNOWN_TRUSTED = Trusted("the fused kernel with a metric", "blocks are, which take longer")


def pair_products(
    inputs: Tensor,
    grads: Tensor,
    slow: Callable[[], Tensor],
    live: Tensor | None = None,
    sum_up: bool = False,
    metric: Tensor | None = None,
    directions: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor | None] | None:
    """Inner products within each pair, ``[B, 4]`` (float64; with a metric or directions more, see ``columns``); None
    where the kernel does not run.

    Args:
        inputs: ``A [2B, T, q]``, chosen rows first.
        grads: ``B [2B, T, p]``.
        slow: the same by other means; asked until it has been finite once.
        live: ``[2B, 2]`` (int32) first position with a gradient and one past the last, where that is known.
        sum_up: also give ``Σ_r G_r [p, q]`` (float32) of the same pass, where the kernel gave the answer.
        metric: ``P [p, q]``.
        directions: ``D`` of them, ``[p, q]`` each.
    """
    if triton is None or not inputs.is_cuda or inputs.dtype not in HALF or grads.dtype != inputs.dtype:
        return None
    total: Tensor | None = None

    def fast() -> Tensor:
        nonlocal total
        found, total = launched(inputs, grads, live, sum_up, metric, directions)
        return found

    known = metric is not None or len(directions) > 0
    key = (inputs.device, inputs.dtype, tile_of(inputs, grads, known), sum_up, metric is None, len(directions))
    trusted = KNOWN_TRUSTED if known else TRUSTED
    found = trusted(key, fast, slow, lambda wanted: sizes(wanted, metric is not None, directions))
    return None if found is None else (found, total)


def columns(plain: Tensor, weighed: Tensor | None, along: Tensor) -> Tensor:
    """One table ``[B, 4 (+ 4) + 2D]`` of plain products and, if there is a metric, those in it, ``[B, 2, 2]`` each, and
    of ``along [2B, D]``."""
    own = [plain.flatten(1)] if weighed is None else [plain.flatten(1), weighed.flatten(1)]
    return torch.cat([*own, *along.double().chunk(2)], 1)


def parts(found: Tensor, weighed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``columns`` undone; without a metric the weighed products are the plain ones."""
    own = found[:, : 8 if weighed else 4].unflatten(1, (-1, 2, 2))
    return own[:, 0], own[:, -1], torch.cat(found[:, 4 * own.shape[1] :].chunk(2, 1))


def sizes(wanted: Tensor, weighed: bool = False, directions: Sequence[Tensor] = ()) -> Tensor:
    """What errors in ``wanted`` (``columns``) are measured by: products of norms."""
    norms = [g.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt() for g in parts(wanted, weighed)[:2]]  # [B, 2] each
    lengths = torch.stack([d.double().norm() for d in directions]).to(wanted) if directions else wanted.new_empty(0)
    along = (norms[0][:, :, None] * lengths).transpose(0, 1).flatten(0, 1)
    plain, own = (n[:, :, None] * n[:, None] for n in norms)
    return columns(plain, own if weighed else None, along)


def launched(
    inputs: Tensor,
    grads: Tensor,
    live: Tensor | None = None,
    sum_up: bool = False,
    metric: Tensor | None = None,
    directions: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor | None]:
    """One launch: what ``pair_products`` gives."""
    if grads.shape[2] < inputs.shape[2] and grads.shape[2] < 128:  # the narrow side is that of the inputs
        turned = None if metric is None else metric.mT
        found, total = launched(grads, inputs, live, sum_up, turned, [d.mT for d in directions])
        return found, None if total is None else total.mT
    (_, positions, q), p, pairs = inputs.shape, grads.shape[2], len(inputs) // 2
    weighed, count = metric is not None, len(directions)
    tile = tile_of(inputs, grads, weighed or count > 0)
    tiles = triton.cdiv(p, tile.outputs) * triton.cdiv(q, tile.inputs)
    splits = max(1, min(pairs, FILLED // tiles))
    partial = inputs.new_empty(tiles, pairs, (8 if weighed else 4) + 2 * count, dtype=torch.float32)
    total = inputs.new_empty(splits, p, q, dtype=torch.float32) if sum_up else partial
    with on_device(inputs):
        pair_kernel[(tiles, splits)](
            inputs.contiguous(), grads.contiguous(), partial,
            whole_rows(len(inputs), positions, inputs.device) if live is None else live, total,
            partial if metric is None else metric.float().contiguous(),
            torch.stack([d.float() for d in directions]) if count else partial, positions, p, q, pairs,
            BLOCK_P=tile.outputs, BLOCK_Q=tile.inputs, BLOCK_T=tile.positions, TOTAL=sum_up,
            METRIC=weighed, DIRECTIONS=count, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    found = partial.sum(0, dtype=torch.float64)
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


def tile_of(inputs: Tensor, grads: Tensor, known: bool) -> Tile:
    """The tile for these sizes on their device, without or with (``known``) a metric or directions."""
    tile = tile_for(inputs.device, KNOWN_TILES if known else TILES)
    narrow = min(inputs.shape[2], grads.shape[2])
    if narrow >= tile.inputs:
        return tile
    return narrowed(tile, max(NARROWEST, triton.next_power_of_2(narrow)))


def narrowed(tile: Tile, inputs: int) -> Tile:
    """The same tile with fewer inputs."""
    return replace(tile, inputs=inputs, warps=4 if inputs <= 32 else tile.warps)


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
        own: tl.constexpr = 8 if METRIC else 4
        if TOTAL:
            summed = tl.zeros((BLOCK_P, BLOCK_Q), dtype=tl.float32)
        for k in range(split, pairs, splits):
            chosen = row_block(inputs, grads, live, k, positions, p, q, at_p, at_q, BLOCK_P, BLOCK_Q, BLOCK_T)
            rejected = row_block(inputs, grads, live, k + pairs, positions, p, q, at_p, at_q, BLOCK_P, BLOCK_Q, BLOCK_T)
            to = partial + (tile.to(tl.int64) * pairs + k) * (own + 2 * DIRECTIONS)
            mixed = tl.sum(chosen * rejected)
            tl.store(to, tl.sum(chosen * chosen))
            tl.store(to + 1, mixed)
            tl.store(to + 2, mixed)
            tl.store(to + 3, tl.sum(rejected * rejected))
            if METRIC:
                weight = tl.load(metric + place, mask=inside, other=0.0)
                tl.store(to + 4, tl.sum(chosen * chosen * weight))
                weighed = tl.sum(chosen * rejected * weight)
                tl.store(to + 5, weighed)
                tl.store(to + 6, weighed)
                tl.store(to + 7, tl.sum(rejected * rejected * weight))
            for d in range(DIRECTIONS):
                step = tl.load(along + tl.zeros((), dtype=tl.int64) + d * p * q + place, mask=inside, other=0.0)
                tl.store(to + own + d, tl.sum(chosen * step))
                tl.store(to + own + DIRECTIONS + d, tl.sum(rejected * step))
            if TOTAL:
                summed += chosen + rejected
        if TOTAL:
            tl.store(total + split.to(tl.int64) * p * q + place, summed, mask=inside)
