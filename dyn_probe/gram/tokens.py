"""Token by token: inner products of single tokens' gradients (Yuan et al. 2024, §4.2), rows = tokens.

Row i is token i of a response: the sequence is repeated once per token, so that one backward carries a tile of tokens.
All rows of a side share their inputs, and with ``S = A A'ᵀ`` a linear layer's Gram is ``K[i, j] = ⟨B_i, S B'_j⟩``: no
block of the weight's size is ever formed. An embedding is the same with ``S[t, s] = [x_t = x'_s]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dyn_probe.capture.tap import Capture
from dyn_probe.capture.uses import Call
from dyn_probe.errors import BadInput
from dyn_probe.gram.api import backward_only
from dyn_probe.gram.coverage import check_coverage, check_rows
from dyn_probe.gram.factors import Lookup, Outer, upcast
from dyn_probe.gram.table import KINDS
from dyn_probe.gram.token_params import select_parameters
from dyn_probe.gram.token_passes import Side, Tile, plan, tiles_of
from dyn_probe.gram.token_products import (
    Part,
    Parts,
    add_products,
    dense_part,
    lookup_part,
    one_position_per_row,
    outer_part,
    point_part,
)
from dyn_probe.pairs import PairBatch, logps_of_tokens

BUDGET = 1 << 30
"""Bytes of output-gradients that may stand at once; beyond, parameters and then tokens are taken one after another."""


@dataclass(frozen=True, eq=False)
class TokenGram:
    """Token gradients of one pair: ``n_w`` chosen and ``n_l`` rejected response tokens.

    Args:
        chosen_rejected: ``[n_w, n_l]`` ``⟨∇log π(y_w^i|·), ∇log π(y_l^j|·)⟩`` (float64); sums to ``⟨g_w,g_l⟩`` (law 2).
        chosen: ``[n_w, n_w]``; its sum is ``‖g_w‖²``.
        rejected: ``[n_l, n_l]``; its sum is ``‖g_l‖²``.
        tokens_chosen: ``[n_w]`` token ids.
        tokens_rejected: ``[n_l]`` token ids.
        parameters: names of the parameters that are summed over.
    """

    chosen_rejected: Tensor
    chosen: Tensor
    rejected: Tensor
    tokens_chosen: Tensor
    tokens_rejected: Tensor
    parameters: tuple[str, ...]

    @property
    def cosine(self) -> Tensor:
        """``[n_w, n_l]`` cosines of ``chosen_rejected`` (Yuan et al. 2024, Figure 4b)."""
        return self._over(self.chosen_rejected, self.chosen, self.rejected)

    @property
    def cosine_chosen(self) -> Tensor:
        """``[n_w, n_w]`` cosines within the chosen response."""
        return self._over(self.chosen, self.chosen, self.chosen)

    @property
    def cosine_rejected(self) -> Tensor:
        """``[n_l, n_l]`` cosines within the rejected response."""
        return self._over(self.rejected, self.rejected, self.rejected)

    @staticmethod
    def _over(gram: Tensor, left: Tensor, right: Tensor) -> Tensor:
        norms = left.diagonal().clamp(min=0).sqrt()[:, None] * right.diagonal().clamp(min=0).sqrt()[None, :]
        return gram / norms


def token_gram(
    model: nn.Module,
    batch: PairBatch,
    pair: int = 0,
    params: str = "all",
    tile: int = 16,
    budget: int = BUDGET,
    progress: Callable[[int, int], None] | None = None,
) -> TokenGram:
    """Exact token-by-token gradient products of one pair, in eval mode, without forming a parameter's gradient.

    Args:
        pair: index in ``batch``.
        params: ``all``, ``head``, ``last-block``, or a regular expression on parameter names.
        tile: tokens that share one forward and backward.
        budget: bytes of output-gradients that may stand at once beside one tile's forward and backward, and never
            less than two tiles of one parameter. A smaller one costs time, not exactness.
        progress: called with ``(tiles done, tiles in all)``.

    Raises:
        BadInput: no such pair, or ``params`` selects no trained parameter.
        UnsupportedUse: a parameter's use cannot be explained.
    """
    if not 0 <= pair < batch.pairs:
        raise BadInput(f"token_gram wants a pair between 0 and {batch.pairs - 1}; got {pair}")
    names = select_parameters(model, params)
    sides = Side.both(batch, pair)
    n = len(sides[0].positions)
    total = n + len(sides[1].positions)
    gram = torch.zeros(total, total, dtype=torch.float64, device=batch.input_ids.device)
    with eval_mode(model):
        passes = plan(model, tiles_of(sides, tile), names, budget)
        count = _Count(progress, sum(one.visits for one in passes))
        for one in passes:
            for block, behind in one.pairs():
                left = _collect(model, block, one.names, count)
                add_products(gram, left, left)
                for other in behind:
                    add_products(gram, left, _collect(model, other, one.names, count))
    ids = [side.ids[side.positions] for side in sides]
    return TokenGram(gram[:n, n:], gram[:n, :n], gram[n:, n:], ids[0], ids[1], tuple(sorted(names)))


class _Count:
    """Tiles done, told to ``progress``."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def step(self) -> None:
        """One more."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


def _collect(model: nn.Module, tiles: Sequence[Tile], names: set[str], count: _Count) -> Parts:
    """What every wanted use of these tiles leaves, by parameter, in the order of tokens."""
    parts: Parts = {}
    for tile in tiles:
        _collect_tile(model, tile, names, parts)
        count.step()
    return parts


def _collect_tile(model: nn.Module, tile: Tile, names: set[str], into: Parts) -> None:
    """One tile's forward and backward."""
    start = tile.side.offset + tile.start

    def receive(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        assert call.kind is not None
        if not names.intersection(call.use.parameters.values()):
            return
        with torch.no_grad():
            for local, factor in call.kind.factors(call, saved, grads).items():
                if (name := call.use.parameters[local]) in names:
                    into.setdefault(name, []).append(_part(factor, start, call))

    with Capture(model, KINDS, receive) as capture, torch.enable_grad():
        logps = logps_of_tokens(model, tile.side.ids, tile.side.positions[tile.start : tile.stop])
        reentrant = check_coverage(capture, logps).reentrant
        check_rows(capture, logps, lambda loss: backward_only(loss, capture, reentrant, retain=True))
        backward_only(logps.sum(), capture, reentrant)


def _part(factor: object, start: int, call: Call) -> Part:
    """What one use of one tile leaves, small: inputs once for all rows, output-gradients per row."""
    if isinstance(factor, Outer):
        points = one_position_per_row(factor) if factor.wide else None
        return outer_part(factor, start) if points is None else point_part(factor, points, start)
    if isinstance(factor, Lookup):
        return lookup_part(factor, start)
    values = torch.stack([upcast(factor.dense(row)) for row in range(call.rows)])  # type: ignore[attr-defined]
    return dense_part(values, start)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
