"""Token by token: inner products of single tokens' gradients (Yuan et al. 2024, §4.2), rows = tokens.

Row i is token i of a response: the sequence is repeated once per token, so that one backward carries a tile of tokens.
All rows of a side share their inputs, which is what the product table makes use of. What a tile leaves is a factor per
use of a parameter, as of any other batch; tiles are multiplied with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from dyn_probe.engine.arithmetic import exact_products
from dyn_probe.engine.coverage import backward_only, explained
from dyn_probe.engine.factors import Factor
from dyn_probe.engine.module_copy import eval_mode
from dyn_probe.engine.parameters import select_parameters
from dyn_probe.engine.products import cross, gram
from dyn_probe.engine.tap import Capture
from dyn_probe.engine.token_plan import Pass, Tile, plan, responses_of, tiles_of
from dyn_probe.engine.uses import Call
from dyn_probe.errors import BadInput
from dyn_probe.pairs import PairBatch, logps_of_tokens

BUDGET = 1 << 30
"""Bytes of output-gradients that may stand at once; beyond, parameters and then tokens are taken one after another."""


@dataclass(frozen=True, eq=False)
class TokenGram:
    """Token gradients of one pair: ``n_w`` chosen and ``n_l`` rejected response tokens.

    Args:
        chosen_rejected: ``[n_w, n_l]`` ``⟨∇log π(y_w^i|·), ∇log π(y_l^j|·)⟩`` (float64); sums to ``⟨g_w,g_l⟩`` .
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
        raise BadInput(f"token_gram needs a pair between 0 and {batch.pairs - 1}; got {pair}")
    names = select_parameters(model, params)
    responses = responses_of(batch, pair)
    chosen, rejected = (ids[positions] for ids, positions in responses)
    n, total = len(chosen), len(chosen) + len(rejected)
    gram = torch.zeros(total, total, dtype=torch.float64, device=batch.input_ids.device)
    with eval_mode(model):
        _fill(
            gram, model, plan(model, tiles_of(responses, tile), names, budget), progress or (lambda done, total: None)
        )
    return TokenGram(gram[:n, n:], gram[:n, :n], gram[n:, n:], chosen, rejected, tuple(sorted(names)))


Parts = dict[str, list[tuple[slice, Factor]]]
"""Parameter → what its uses left, tile by tile in the order of tokens: their rows of the Gram, and a factor."""


def _fill(gram: Tensor, model: nn.Module, passes: Sequence[Pass], progress: Callable[[int, int], None]) -> None:
    """Every block of tiles with itself and with those behind it; these are computed once more for it."""
    visits = sum((k + 1) * len(block) for _, blocks in passes for k, block in enumerate(blocks))
    done = count(1)

    def collect(tiles: Sequence[Tile], names: set[str]) -> Parts:
        parts: Parts = {}
        for tile in tiles:
            _collect(model, tile, names, parts)
            progress(next(done), visits)
        return parts

    for names, blocks in passes:
        for k, block in enumerate(blocks):
            left = collect(block, names)
            add_products(gram, left, left)
            for other in blocks[k + 1 :]:
                add_products(gram, left, collect(other, names))


def _collect(model: nn.Module, tile: Tile, names: set[str], into: Parts) -> None:
    """One tile's forward and backward."""
    rows = slice(tile.start, tile.start + tile.rows)

    def receive(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        if not names.intersection(call.use.parameters.values()):
            return
        with exact_products(capture.anchor.device.type):
            for local, factor in call.kind.factors(call, saved, grads).items():
                if (name := call.use.parameters[local]) in names:
                    into.setdefault(name, []).append((rows, factor.shared()))

    with Capture(model, receive) as capture, torch.enable_grad():
        logps = logps_of_tokens(model, tile.ids, tile.positions)
        backward_only(logps.sum(), capture, explained(capture, logps).reentrant)


def add_products(total: Tensor, left: Parts, right: Parts) -> None:
    """Add to ``total [n_w + n_l, n_w + n_l]`` what every parameter's parts have with each other; ``left`` and ``right``
    are the same parts or of different tokens."""
    with exact_products(total.device.type):
        for name in left.keys() & right.keys():
            for k, (rows, one) in enumerate(left[name]):
                for columns, other in right[name][k:] if left is right else right[name]:
                    if one is other:
                        total[rows, rows] += gram(one, 1)[0]
                    else:
                        block = cross(one, other, 1)[0]
                        total[rows, columns] += block
                        total[columns, rows] += block.T
