"""The product table: inner products of the gradients that two factors of one parameter hold.

With ``Σ_t u[t] ⊗ v[t]`` for a row's gradient, two rows' inner product is ``Σ_{t,s} (u[t]·u'[s]) (v[t]·v'[s])``, a
contraction of two token Grams. ``v·v'`` is the same for all; the table says what ``u·u'`` is:

    linear × linear          ``B[t]·B'[s]``             with ``v = A``, the inputs
    lookup × lookup          ``1`` where ``x[t] = x'[s]``   with ``v = D``, the output-gradients
    head × tied table        ``B[t, x'[s]]``            with ``v = A`` against ``v' = D``

A metric ``P`` (elementwise, in the parameter's shape) gives ``Σ_k P_k g_k g'_k``. On a table it scales the entries
that were read; between two linear uses the gradients are formed, a slice of outputs at a time.

Rows come in groups, ``[n, G]``: ``G`` groups of ``n`` rows, compared within their group (``[chosen; rejected]`` with
``G`` = pairs; ``G`` = 1 compares all).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import HALF, as32, dots, matmul32
from dyn_probe.engine.factors import ALL, Factor, Lookup, Outer, Vector, for_rows
from dyn_probe.engine.heads.head_rows import HeadRows
from dyn_probe.engine.routes.blocks import blocks_and_sum, by_blocks
from dyn_probe.engine.routes.costs import by_prompt, cheaper_by_tokens, few, fused_is_dearer
from dyn_probe.engine.routes.prefix import pairs_by_prefix

AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Entries of a token Gram up to which all rows are compared at once, also those that symmetry would spare; elsewhere
``CHUNK``."""
COPIED = 1 << 20
"""Numbers of one side of a pairwise product up to which a CPU copies all rows together, to compare them at once."""
CHUNK = 1 << 24
"""Numbers of one part of a token Gram (64 MiB in float32)."""

Sides = tuple[Tensor, Tensor]
"""The same of two factors; one and the same tensor where it is of a factor with itself."""


def gram(factor: Factor, groups: int, metric: Tensor | None = None) -> Tensor:
    """``[G, n, n]`` (float64) inner products of a factor's rows with each other.

    Args:
        groups: ``G``.
        metric: ``P``, in the parameter's shape; None for the plain inner product.
    """
    return cross(factor, factor, groups, metric)


def cross(one: Factor, other: Factor, groups: int, metric: Tensor | None = None) -> Tensor:
    """``[G, n, m]`` (float64) inner products of the rows of one factor with those of another, of the same parameter."""
    if found := PRODUCTS.get((one.form, other.form)):
        return found(one, other, groups, metric)
    if turned := PRODUCTS.get((other.form, one.form)):
        return turned(other, one, groups, metric).mT
    return _written_out(one, other, groups, metric)


def _written_out(one: Factor, other: Factor, groups: int, metric: Tensor | None) -> Tensor:
    """By the gradients ``[R, n]`` of every row: for two forms that have no product of their own."""
    left, right = (Vector(torch.stack([factor.dense(i) for i in range(factor.rows)])) for factor in (one, other))
    return _vectors(left, right, groups, metric)


def _linears(one: Outer, other: Outer, groups: int, metric: Tensor | None) -> Tensor:
    """Two linear uses: by token Grams, by the pairs' shared prompts, or by blocks, whichever costs least."""
    if one.transposed != other.transposed:
        return _written_out(one, other, groups, metric)
    if metric is not None:
        return by_blocks(one, other, groups, metric)
    if groups == 1 and len(one.inputs) == len(other.inputs) == 1 < one.rows:
        return _through(one.grads, matmul32(one.inputs[0], other.inputs[0].T), other.grads)
    if groups == one.grads.shape[1] == other.grads.shape[1] == 1:
        inputs = matmul32(_inputs(one, 1)[:, 0, 0], _inputs(other, 1)[:, 0, 0].T)
        return (inputs * matmul32(one.grads[:, 0], other.grads[:, 0].T)).double()[None]
    fuse = one is other and may_fuse(one, groups) and not fused_is_dearer(one, groups)
    if fuse and (found := _fused(one, groups)) is not None:
        return found[0]
    if not _by_tokens(one, other, groups):
        return by_blocks(one, other, groups)
    if one is other and by_prompt(one, groups):
        return pairs_by_prefix(as32(one.inputs), as32(one.grads), one.spans)
    grads = _both(lambda outer: _grouped(outer.grads, groups), one, other)
    return _contract(matmul32, grads, _both(lambda outer: _inputs(outer, groups), one, other))


def _both(made: Callable[[Any], Tensor], one: Factor, other: Factor) -> Sides:
    """What is made of two factors; the same tensor where they are the same."""
    left = made(one)
    return left, left if one is other else made(other)


def _inputs(outer: Outer, groups: int) -> Tensor:
    return _grouped(for_rows(outer.inputs, outer.rows), groups)


def _lookups(one: Lookup, other: Lookup, groups: int, metric: Tensor | None) -> Tensor:
    """Two readings of one table."""
    grads = _scaled(one, metric)
    if groups == 1 and len(one.ids) == len(other.ids) == 1 < one.rows:
        same = (one.ids[0][:, None] == other.ids[0][None]).to(as32(grads).dtype)
        return _through(grads, same, other.grads)
    ids = _both(lambda table: _grouped(for_rows(table.ids, table.rows), groups).unsqueeze(-1), one, other)
    left = _grouped(grads, groups)
    right = left if one is other and metric is None else _grouped(other.grads, groups)
    return _contract(torch.eq, ids, (left, right))


def _head_and_table(head: Outer, table: Lookup, groups: int, metric: Tensor | None) -> Tensor:
    """A head and the table it is tied to: ``Σ_{t,s} B_i[t, x_j[s]] (A_i[t]·D_j[s])``."""
    if head.transposed:
        return _written_out(head, table, groups, metric)
    ids = _grouped(for_rows(table.ids, table.rows), groups)
    hidden, deltas = _inputs(head, groups), _grouped(_scaled(table, metric), groups)
    rows = []
    for i in range(len(hidden)):
        columns = as32(head.columns(i, ids)).transpose(1, 2)  # [G, m, P, S]
        products = matmul32(hidden[i].unsqueeze(1), deltas.transpose(0, 1).mT)
        rows.append((columns * products).sum((-1, -2)).double())
    return torch.stack(rows, 1)


def _heads(one: HeadRows, other: HeadRows, groups: int, metric: Tensor | None) -> Tensor:
    """A head that is made in slices of the vocabulary, with itself."""
    if one is not other:
        return _written_out(one, other, groups, metric)
    parts = (_linears(tile, tile, groups, None if metric is None else metric[part]) for part, tile in one.tiles())
    return torch.stack(list(parts)).sum(0)


def _vectors(one: Vector, other: Vector, groups: int, metric: Tensor | None) -> Tensor:
    """Gradients as they are; those that are made on demand, a group at a time."""
    if one.step >= one.rows and other.step >= other.rows:
        return _taken(one, other, groups, metric, ALL)
    return torch.cat([_taken(one, other, 1, metric, slice(g, None, groups)) for g in range(groups)])


def _taken(one: Vector, other: Vector, groups: int, metric: Tensor | None, rows: slice) -> Tensor:
    """The same of some rows."""
    left = _grouped(one.take(rows), groups)
    right = left if one is other else _grouped(other.take(rows), groups)
    return dots(left if metric is None else as32(left) * metric.flatten(), right)


PRODUCTS: dict[tuple[str, str], Callable[[Any, Any, int, Tensor | None], Tensor]] = {
    ("outer", "outer"): _linears,
    ("lookup", "lookup"): _lookups,
    ("vector", "vector"): _vectors,
    ("outer", "lookup"): _head_and_table,
    ("head", "head"): _heads,
    ("head", "lookup"): _head_and_table,
}
"""Forms that can meet in one parameter → their product; the other order is the transpose."""


def _grouped(tensor: Tensor, groups: int) -> Tensor:
    """``[n, G, …]``."""
    return tensor.unflatten(0, (-1, groups))


def _scaled(table: Lookup, metric: Tensor | None) -> Tensor:
    """``D``, with the entries that were read scaled by the metric."""
    return table.grads if metric is None else as32(table.grads) * metric[table.ids]


def _contract(meet: Callable[[Tensor, Tensor], Tensor], first: Sides, second: Sides) -> Tensor:
    """``[G, n, m]``: ``Σ_{t,s} meet(u[t], u'[s]) (v[t]·v'[s])`` from ``u [n, G, P, ·]``, ``u' [m, G, S, ·]`` and ``v``,
    ``v'`` likewise; of a factor with itself (``u`` is ``u'``) the half that symmetry does not give."""
    one, other = second
    (n, groups, positions), (m, _, others), symmetric = one.shape[:3], other.shape[:3], first[0] is first[1]
    wide = groups > 1 and n == m == 2 and not one.is_cuda and _wide(*first, *second)
    if not wide and groups * n * positions * m * others <= AT_ONCE.get(one.device.type, CHUNK):
        return _contracted(meet, first, second, ALL, ALL)
    answer = one.new_zeros(groups, n, m, dtype=torch.float64)
    step = max(1, CHUNK // max(1, groups * positions * others))
    step = 1 if wide or (one.is_cuda and groups > 1) else step  # rows of pairs are where they are: nothing is copied
    for i in range(n):
        for j in range(i if symmetric else 0, m, step):
            row, some = slice(i, i + 1), slice(j, min(j + step, m))
            found = _contracted(meet, first, second, row, some)
            answer[:, row, some] = found
            if symmetric:
                answer[:, some, row] = found.mT
    return answer


def _wide(*sides: Tensor) -> bool:
    """Whether copying rows to lie together takes long (half precision is copied to float32 anyway)."""
    return not any(side.dtype in HALF for side in sides) and max(side.numel() for side in sides) > COPIED


def _contracted(
    meet: Callable[[Tensor, Tensor], Tensor], first: Sides, second: Sides, rows: slice, others: slice
) -> Tensor:
    """``[G, rows, others]`` (float64) of the same."""
    products = meet(*_tokens(first, rows, others)) * matmul32(*_tokens(second, rows, others))
    one, other = (side.shape[2] for side in second)
    return products.view(len(products), -1, one, products.shape[2] // other, other).sum((2, 4)).double()


def _tokens(sides: Sides, rows: slice, others: slice) -> Sides:
    """``[G, rows P, d]`` and ``[G, d, others S]``: the tokens of some rows of both as the two sides of a product."""

    def some(tensor: Tensor, rows: slice) -> Tensor:
        found = (tensor if rows is ALL else tensor[rows]).transpose(0, 1).flatten(1, 2)
        return found if found.is_cuda else as32(found)  # once for both sides

    one, other = sides
    left = some(one, rows)
    return left, (left if one is other and rows == others else some(other, others)).mT


def _through(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """``[1, n, m]``: ``⟨B_i, S B'_j⟩`` for ``B [n, P, q]``, ``S [P, P']``, ``B' [m, P', q]``: shared inputs or ids."""
    mixed = matmul32(middle.to(as32(right).dtype), as32(right))
    return (as32(left).flatten(1) @ mixed.flatten(1).T).double()[None]


def gram_and_sum(factor: Factor, groups: int) -> tuple[Tensor, Tensor | None]:
    """``gram``, and the sum of all rows' gradients where the same pass forms them; else None in its place."""
    if type(factor) is not Outer or len(factor.inputs) < factor.rows:
        return gram(factor, groups), None
    if may_fuse(factor, groups) and (found := _fused(factor, groups, True)) is not None:
        return found
    if _by_tokens(factor, factor, groups, True):
        return gram(factor, groups), None
    return blocks_and_sum(factor, groups)


def may_fuse(one: Outer, groups: int) -> bool:
    """Whether these are pairs in half precision on a GPU."""
    pairs = 2 * groups == one.rows == len(one.inputs)
    return pairs and one.inputs.is_cuda and one.inputs.dtype in HALF


def _by_tokens(one: Outer, other: Outer, groups: int, sum_up: bool = False) -> bool:
    """Whether token Grams are to be used, not blocks."""
    size = one.rows * one.grads.shape[-1] * one.inputs.shape[-1]
    return not few(size, one.grads.device.type) and cheaper_by_tokens(one, other, groups, sum_up)


def _fused(one: Outer, groups: int, sum_up: bool = False) -> tuple[Tensor, Tensor | None] | None:
    """Pairs on a GPU, in a pass that writes no row's gradient down; None where it cannot run.

    Args:
        sum_up: also give the sum of the rows' gradients, in the parameter's shape.
    """
    from dyn_probe.engine.kernels import pair_kernel  # brings a compiler along, which a CPU has no use for

    grads, inputs = one.sides
    found = pair_kernel.pair_products(inputs, grads, lambda: by_blocks(one, one, groups).flatten(1), one.live, sum_up)
    return None if found is None else (found[0].unflatten(1, (2, 2)), found[1])


def of_uses(factors: Sequence[Factor], groups: int, metric: Tensor | None = None) -> Tensor:
    """``[G, n, n]`` (float64): products of the sums over several uses of one parameter."""
    answers = [gram(factor, groups, metric) for factor in factors]
    for k, one in enumerate(factors):
        for other in factors[k + 1 :]:
            mixed = cross(one, other, groups, metric)
            answers.append(mixed + mixed.mT)
    return answers[0] if len(answers) == 1 else torch.stack(answers).sum(0)


def lookups_last(factors: Sequence[Factor]) -> list[Any]:
    """In the order in which they are summed up: lookups add into what is there."""
    return sorted(factors, key=lambda factor: factor.form == "lookup")


def by_sum(factors: Sequence[Factor], groups: int) -> Tensor:
    """The same by writing the sum of all rows' gradients down, where a layer and its tied table allow it."""
    first, *others = lookups_last(factors)
    if not all(type(f) is Lookup or (type(f) is Outer and not f.transposed) for f in factors):
        return of_uses(factors, groups)
    block = first.block(ALL)
    for factor in others:
        factor.add_block(ALL, block)
    rows = block.reshape(block.shape[0] // groups, groups, block.shape[1:].numel())
    return dots(rows, rows)
