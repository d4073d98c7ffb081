"""Products between parts: what one use of a parameter left for one tile of tokens.

Letters: ``n`` tokens of a tile, ``P`` positions, ``A [P, p]`` inputs that all rows share,
``B [n, P, q]`` output-gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dyn_probe.gram.factors import Lookup, Outer, upcast


@dataclass(frozen=True, eq=False)
class Part:
    """One use and one tile: ``kind`` is outer, lookup, point or dense; ``start`` the tile's first token."""

    kind: str
    start: int
    use: str
    shared: Tensor
    grads: Tensor


def outer_part(factor: Outer, start: int, use: str) -> Part:
    """``grad_i = Σ_t B_i[t] ⊗ A[t]`` with the inputs of the first row."""
    part = Part("outer", start, use, upcast(factor.inputs[0]), upcast(factor.grads))
    return Part("outer-transposed", *part_fields(part)) if factor.transposed else part


def part_fields(part: Part) -> tuple[int, str, Tensor, Tensor]:
    """A part's fields behind its kind."""
    return part.start, part.use, part.shared, part.grads


def lookup_part(factor: Lookup, start: int, use: str) -> Part:
    """``grad_i = Σ_t e_{x[t]} ⊗ D_i[t]``."""
    return Part("lookup", start, use, factor.ids[0], upcast(factor.grads))


def point_part(factor: Outer, start: int, use: str) -> Part:
    """A head's use: row i has a gradient at the one position that predicts its token, so ``A [n, p]``, ``B [n, V]``."""
    alive = ~((factor.grads.amax(-1) == 0) & (factor.grads.amin(-1) == 0))
    position = alive.long().argmax(1)
    rows = torch.arange(len(position), device=position.device)
    return Part("point", start, use, upcast(factor.inputs[rows, position]), upcast(factor.grads[rows, position]))


def dense_part(values: Tensor, start: int, use: str) -> Part:
    """Gradients as they are, ``[n, m]``."""
    return Part("dense", start, use, values.new_zeros(0), values)


def part_products(chosen: Sequence[Part], rejected: Sequence[Part]) -> Tensor:
    """``[n_w + n_l, n_w + n_l]`` products of one parameter's token gradients over both sides, float64."""
    sizes = [tokens(side) for side in (chosen, rejected)]
    parts = [*((0, part) for part in chosen), *((sizes[0], part) for part in rejected)]
    gram = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64, device=parts[0][1].grads.device)
    for k, (offset, left) in enumerate(parts):
        for other, right in parts[k:]:
            rows = slice(offset + left.start, offset + left.start + len(left.grads))
            columns = slice(other + right.start, other + right.start + len(right.grads))
            block = product(left, right).double()
            gram[rows, columns] += block
            if left is not right:
                gram[columns, rows] += block.T
    return gram


def tokens(parts: Sequence[Part]) -> int:
    """Tokens that a side's parts cover."""
    return max((part.start + len(part.grads) for part in parts), default=0)


def product(left: Part, right: Part) -> Tensor:
    """``[n, n']`` inner products of two parts of one parameter."""
    kinds = (left.kind, right.kind)
    if kinds in (("outer", "outer"), ("outer-transposed", "outer-transposed")):
        return _through(left.grads, (left.shared @ right.shared.T).to(left.grads.dtype), right.grads)
    if kinds == ("lookup", "lookup"):
        match = (left.shared[:, None] == right.shared[None, :]).to(left.grads.dtype)
        return _through(left.grads, match, right.grads)
    if kinds == ("point", "point"):
        return (left.shared @ right.shared.T) * (left.grads @ right.grads.T)
    if kinds == ("dense", "dense"):
        return left.grads @ right.grads.T
    if kinds == ("point", "lookup"):
        return _head_and_table(left, right)
    if kinds == ("lookup", "point"):
        return _head_and_table(right, left).T
    if kinds == ("outer", "lookup"):
        return _outer_and_table(left, right)
    if kinds == ("lookup", "outer"):
        return _outer_and_table(right, left).T
    raise AssertionError(f"no product of {kinds}")


def _through(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """``⟨B_i, S B'_j⟩``."""
    return left.flatten(1) @ torch.einsum("ts,nsq->ntq", middle, right).flatten(1).T


def _head_and_table(head: Part, table: Part) -> Tensor:
    """Tied cross term: ``Σ_s B_i[x_s] (h_i·Δ_j[s])``."""
    columns = head.grads[:, table.shared]
    mixed = torch.einsum("is,id->isd", columns, head.shared.to(columns.dtype))
    return mixed.flatten(1) @ table.grads.to(mixed.dtype).flatten(1).T


def _outer_and_table(outer: Part, table: Part) -> Tensor:
    """The same for a head with several positions: ``Σ_{t,s} B_i[t, x_s] (A[t]·Δ_j[s])``."""
    columns = outer.grads[:, :, table.shared]
    mixed = torch.einsum("its,td->isd", columns, outer.shared.to(columns.dtype))
    return mixed.flatten(1) @ table.grads.to(mixed.dtype).flatten(1).T
