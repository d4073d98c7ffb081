"""Token by token: inner products of single tokens' gradients (Yuan et al. 2024, §4.2), rows = tokens.

Row i is token i of a response: the sequence is repeated once per token, so that one backward carries a tile of tokens.
All rows of a side share their inputs, and with ``S = A A'ᵀ`` a linear layer's Gram is ``K[i, j] = ⟨B_i, S B'_j⟩``: no
block of the weight's size is ever formed. An embedding is the same with ``S[t, s] = [x_t = x'_s]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dyn_probe.capture.tap import Capture
from dyn_probe.capture.uses import Call, layers_of, trained_parameters
from dyn_probe.errors import BadInput
from dyn_probe.gram.api import backward_only
from dyn_probe.gram.coverage import check_coverage, check_rows
from dyn_probe.gram.factors import Lookup, Outer, upcast
from dyn_probe.gram.table import KINDS
from dyn_probe.gram.token_products import (
    Part,
    dense_part,
    lookup_part,
    one_position_per_row,
    outer_part,
    part_products,
    point_part,
)
from dyn_probe.pairs import PairBatch, logps_of_tokens

BUDGET = 1 << 30
"""Bytes of output-gradients that may stand at once; beyond, the layers are taken in several passes."""


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
        budget: bytes of output-gradients that may stand at once (it bounds memory, not the answer).
        progress: called with ``(tiles done, tiles in all)``.

    Raises:
        BadInput: no such pair, or no parameter matches.
        UnsupportedUse: a parameter's use cannot be explained.
    """
    if not 0 <= pair < batch.pairs:
        raise BadInput(f"token_gram wants a pair between 0 and {batch.pairs - 1}; got {pair}")
    sides = [_Side.of(batch, row) for row in (pair, pair + batch.pairs)]
    names = select_parameters(model, params)
    tokens = sum(len(side.positions) for side in sides)
    gram = torch.zeros(tokens, tokens, dtype=torch.float64, device=batch.input_ids.device)
    with _eval_mode(model):
        groups = _passes(model, sides, names, budget)
        total, done = len(groups) * sum(len(side.tiles(tile)) for side in sides), 0
        for group in groups:
            parts: list[dict[str, list[Part]]] = [{}, {}]
            for side, collected in zip(sides, parts, strict=True):
                for start, stop in side.tiles(tile):
                    _collect(model, side, start, stop, group, collected)
                    done += 1
                    if progress is not None:
                        progress(done, total)
            for name in parts[0].keys() | parts[1].keys():
                gram += part_products(*(collected.get(name, []) for collected in parts))
    n = len(sides[0].positions)
    ids = [side.ids[side.positions] for side in sides]
    return TokenGram(gram[:n, n:], gram[:n, :n], gram[n:, n:], ids[0], ids[1], tuple(names))


@dataclass(frozen=True, eq=False)
class _Side:
    """One response with its prompt, without padding: ``ids [L]``, and the positions of the response tokens."""

    ids: Tensor
    positions: Tensor

    @staticmethod
    def of(batch: PairBatch, row: int) -> _Side:
        keep = batch.attention_mask[row].bool()
        return _Side(batch.input_ids[row][keep], batch.response_mask[row][keep].nonzero().flatten())

    def tiles(self, size: int) -> list[tuple[int, int]]:
        n = len(self.positions)
        return [(i, min(i + size, n)) for i in range(0, n, size)]


def _collect(
    model: nn.Module, side: _Side, start: int, stop: int, names: set[str], into: dict[str, list[Part]]
) -> None:
    """One tile's forward and backward; every wanted use goes into ``into``, in the order of tokens."""

    def receive(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        assert call.kind is not None
        if not names.intersection(call.use.parameters.values()):
            return
        with torch.no_grad():
            for local, factor in call.kind.factors(call, saved, grads).items():
                if (name := call.use.parameters[local]) in names:
                    into.setdefault(name, []).append(_part(factor, start, call))

    with Capture(model, KINDS, receive) as capture, torch.enable_grad():
        logps = logps_of_tokens(model, side.ids, side.positions[start:stop])
        reentrant = check_coverage(capture, logps)
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


def select_parameters(model: nn.Module, params: str) -> set[str]:
    """Names of the trained parameters that ``params`` means (see ``token_gram``)."""
    with Capture(model, KINDS, lambda *_: None) as capture:
        layers = layers_of(list(trained_parameters(model)), capture.uses)
    blocks = [int(layer.label) for layer in layers.values() if layer.label.isdigit()]
    if params == "all":
        return set(layers)
    if params == "head":
        head = {n for n, layer in layers.items() if layer.label == "head"}
        return head or {
            n for n, layer in layers.items() if layer.label == "embedding" and trained_parameters(model)[n].dim() == 2
        }
    if params == "last-block":
        return {n for n, layer in layers.items() if layer.label == str(max(blocks, default=-1))}
    try:
        found = {name for name in layers if re.search(params, name)}
    except re.error as error:
        raise BadInput(f"--params wants all, head, last-block or a regular expression; {params!r}: {error}") from error
    if not found:
        raise BadInput(
            f"no trained parameter matches {params!r}; there are, for example: {', '.join(list(layers)[:5])}"
        )
    return found


def _passes(model: nn.Module, sides: Sequence[_Side], names: set[str], budget: int) -> list[set[str]]:
    """The parameters in groups whose output-gradients for all tokens fit the budget."""
    area = sum(len(side.positions) * len(side.ids) for side in sides)
    groups: list[set[str]] = [set()]
    used = 0
    for name, parameter in trained_parameters(model).items():
        if name not in names:
            continue
        width = max(parameter.shape) if parameter.dim() > 1 else 0
        cost = 4 * area * (width if width < 16384 else min(parameter.shape))
        if groups[-1] and used + cost > budget:
            groups.append(set())
            used = 0
        groups[-1].add(name)
        used += cost
    return groups


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
