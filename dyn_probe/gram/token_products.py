"""Products between parts: what one use of a parameter left for one tile of tokens.

Letters: ``n`` tokens of a tile, ``P`` positions, ``A [P, p]`` inputs that all rows share,
``B [n, P, q]`` output-gradients. A point has one live position per row: ``A [n, p]``, ``B [n, q]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dyn_probe.gram.factors import Lookup, Outer, upcast


@dataclass(frozen=True, eq=False)
class Part:
    """One use and one tile: ``kind`` is outer, lookup, point or dense, ``start`` the Gram's row of its first token."""

    kind: str
    start: int
    shared: Tensor
    grads: Tensor

    @property
    def rows(self) -> slice:
        """Its tokens' rows of the Gram."""
        return slice(self.start, self.start + len(self.grads))


Parts = dict[str, list[Part]]
"""Parameter → parts of its uses, tile by tile."""


def outer_part(factor: Outer, start: int) -> Part:
    """``grad_i = Σ_t B_i[t] ⊗ A[t]`` with the inputs of the first row."""
    kind = "outer-transposed" if factor.transposed else "outer"
    return Part(kind, start, upcast(factor.inputs[0]), upcast(factor.grads))


def lookup_part(factor: Lookup, start: int) -> Part:
    """``grad_i = Σ_t e_{x[t]} ⊗ D_i[t]``."""
    return Part("lookup", start, factor.ids[0], upcast(factor.grads))


def one_position_per_row(factor: Outer) -> Tensor | None:
    """``[n]`` the only position of each row that has a gradient; None if any row has more than one.

    A head has one: row i has a gradient where its token is predicted. A hidden layer mostly has more.
    """
    alive = ~((factor.grads.amax(-1) == 0) & (factor.grads.amin(-1) == 0))  # NaN counts as alive
    return alive.long().argmax(1) if bool((alive.sum(1) <= 1).all()) else None


def point_part(factor: Outer, position: Tensor, start: int) -> Part:
    """``grad_i = B_i ⊗ A_i`` at each row's one live position: ``A [n, p]``, ``B [n, q]``."""
    kind = "point-transposed" if factor.transposed else "point"
    rows = torch.arange(len(position), device=position.device)
    return Part(kind, start, upcast(factor.inputs[rows, position]), upcast(factor.grads[rows, position]))


def dense_part(values: Tensor, start: int) -> Part:
    """Gradients as they are, ``[n, m]``."""
    return Part("dense", start, values.new_zeros(0), values)


def add_products(gram: Tensor, left: Parts, right: Parts) -> None:
    """Add to ``gram [n_w + n_l, n_w + n_l]`` what every parameter's parts have with each other; ``left`` and ``right``
    are the same parts or of different tokens."""
    for name in left.keys() & right.keys():
        for k, one in enumerate(left[name]):
            for other in right[name][k:] if left is right else right[name]:
                rows, columns = one.rows, other.rows
                block = product(one, other).double()
                gram[rows, columns] += block
                if one is not other:
                    gram[columns, rows] += block.T


def product(left: Part, right: Part) -> Tensor:
    """``[n, n']`` inner products of two parts of one parameter."""
    found = PRODUCTS.get((left.kind, right.kind))
    if found is not None:
        return found(left, right)
    turned = PRODUCTS.get((right.kind, left.kind))
    assert turned is not None, f"no product of {left.kind} and {right.kind}"
    return turned(right, left).T


def _outers(left: Part, right: Part) -> Tensor:
    """``⟨B_i, S B'_j⟩`` with ``S = A A'ᵀ``."""
    return _through(left.grads, (left.shared @ right.shared.T).to(left.grads.dtype), right.grads)


def _lookups(left: Part, right: Part) -> Tensor:
    """The same with ``S[t, s] = [x_t = x'_s]``."""
    match = (left.shared[:, None] == right.shared[None, :]).to(left.grads.dtype)
    return _through(left.grads, match, right.grads)


def _through(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """``⟨B_i, S B'_j⟩``."""
    return left.flatten(1) @ torch.einsum("ts,nsq->ntq", middle, right).flatten(1).T


def _points(left: Part, right: Part) -> Tensor:
    """``(A_i·A'_j) (B_i·B'_j)``."""
    return (left.shared @ right.shared.T) * (left.grads @ right.grads.T)


def _point_and_outer(point: Part, outer: Part) -> Tensor:
    """``Σ_t (A_i·A'[t]) (B_i·B'_j[t])``."""
    outputs = torch.einsum("iq,jtq->jit", point.grads, outer.grads)
    return (outputs * (point.shared @ outer.shared.T).to(outputs.dtype)).sum(2).T


def _dense(left: Part, right: Part) -> Tensor:
    return left.grads @ right.grads.T


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


PRODUCTS: dict[tuple[str, str], Callable[[Part, Part], Tensor]] = {
    ("outer", "outer"): _outers,
    ("outer-transposed", "outer-transposed"): _outers,
    ("point", "point"): _points,
    ("point-transposed", "point-transposed"): _points,
    ("point", "outer"): _point_and_outer,
    ("point-transposed", "outer-transposed"): _point_and_outer,
    ("lookup", "lookup"): _lookups,
    ("point", "lookup"): _head_and_table,
    ("outer", "lookup"): _outer_and_table,
    ("dense", "dense"): _dense,
}
"""Kinds that can meet in one parameter → their products; the other order is the transpose."""
