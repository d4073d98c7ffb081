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

from dyn_probe.engine.arithmetic import HALF, as32, dots, for_products, matmul32
from dyn_probe.engine.factors import ALL, Factor, Lookup, Outer, Vector
from dyn_probe.engine.heads.head_rows import HeadRows
from dyn_probe.engine.routes.blocks import blocks_and_sum, by_blocks
from dyn_probe.engine.routes.costs import cheaper_by_tokens, few, fused_is_dearer
from dyn_probe.engine.routes.prefix import pairs_by_prefix
from dyn_probe.engine.routes.rates import CPU, Rates

AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Entries of a token Gram up to which all rows are compared at once, also those that symmetry would spare; elsewhere
``CHUNK``."""
CHUNK = 1 << 24
"""Numbers of one slice of blocks or of one part of a token Gram (64 MiB in float32)."""


def gram(factor: Factor, groups: int, metric: Tensor | None = None) -> Tensor:
    """``[G, n, n]`` (float64) inner products of a factor's rows with each other.

    Args:
        groups: ``G``.
        metric: ``P``, in the parameter's shape; None for the plain inner product.
    """
    return PRODUCTS[factor.form, factor.form](factor, factor, groups, metric)


def cross(one: Factor, other: Factor, groups: int, metric: Tensor | None = None) -> Tensor:
    """``[G, n, m]`` (float64) inner products of the rows of one factor with those of another, of the same parameter."""
    if found := PRODUCTS.get((one.form, other.form)):
        return found(one, other, groups, metric)
    if turned := PRODUCTS.get((other.form, one.form)):
        return turned(other, one, groups, metric).mT
    return _vectors(dense(one), dense(other), groups, metric)


def dense(factor: Factor) -> Vector:
    """The gradients written out, ``[R, n]``: for two forms that have no product of their own."""
    return Vector(torch.stack([factor.dense(i) for i in range(factor.rows)]))


def _linears(one: Outer, other: Outer, groups: int, metric: Tensor | None) -> Tensor:
    """Two linear uses: by token Grams, by the pairs' shared prompts, or by blocks, whichever costs least."""
    if one.transposed != other.transposed:
        return _vectors(dense(one), dense(other), groups, metric)
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
    pairs = one is other and 2 * groups == one.rows == len(one.inputs)
    if pairs and len(one.spans) == groups and one.grads.device.type == "cpu":
        return pairs_by_prefix(as32(one.inputs), as32(one.grads), one.spans)
    a, b = _grouped(one.grads, groups), _grouped(other.grads, groups)
    left, right = _inputs(one, groups), _inputs(other, groups)
    return _contract(lambda i, j: _token_gram(a, b, i, j, one is other), left, right, one is other)


def _inputs(outer: Outer, groups: int) -> Tensor:
    return _grouped(_by_rows(outer.inputs, outer.rows), groups)


def _by_rows(tensor: Tensor, rows: int) -> Tensor:
    """What all rows may share, for each of them."""
    return tensor if len(tensor) == rows else tensor.expand(rows, *[-1] * (tensor.dim() - 1))


def _lookups(one: Lookup, other: Lookup, groups: int, metric: Tensor | None) -> Tensor:
    """Two readings of one table."""
    grads = _scaled(one, metric)
    if groups == 1 and len(one.ids) == len(other.ids) == 1 < one.rows:
        same = (one.ids[0][:, None] == other.ids[0][None]).to(as32(grads).dtype)
        return _through(grads, same, other.grads)
    x, y = (_grouped(_by_rows(f.ids, f.rows), groups).unsqueeze(-1) for f in (one, other))
    a = _grouped(grads, groups)
    b = a if one is other and metric is None else _grouped(other.grads, groups)
    return _contract(lambda i, j: torch.eq(*_sides(x, y, i, j, one is other)), a, b, one is other)


def _head_and_table(head: Outer, table: Lookup, groups: int, metric: Tensor | None) -> Tensor:
    """A head and the table it is tied to: ``Σ_{t,s} B_i[t, x_j[s]] (A_i[t]·D_j[s])``."""
    if head.transposed:
        return _vectors(dense(head), dense(table), groups, metric)
    ids = _grouped(_by_rows(table.ids, table.rows), groups)
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
        return _vectors(dense(one), dense(other), groups, metric)
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


def _contract(first: Callable[[slice, slice], Tensor], one: Tensor, other: Tensor, symmetric: bool) -> Tensor:
    """``[G, n, m]``: ``Σ_{t,s} X[t,s] (v[t]·v'[s])`` from ``v [n, G, P, d]``, ``v' [m, G, S, d]`` and, for some of the
    rows of both, ``X = first(rows, others) [G, rows P, others S]``."""
    n, m, groups = len(one), len(other), one.shape[1]
    if groups * n * one.shape[2] * m * other.shape[2] <= AT_ONCE.get(one.device.type, CHUNK):
        return _contracted(first, one, other, ALL, ALL).double()
    answer = one.new_zeros(groups, n, m, dtype=torch.float64)
    step = max(1, CHUNK // max(1, groups * one.shape[2] * other.shape[2]))
    step = 1 if one.is_cuda and groups > 1 else step  # a pair's own rows are where they are: nothing is copied
    for i in range(n):
        for j in range(i if symmetric else 0, m, step):
            row, some = slice(i, i + 1), slice(j, min(j + step, m))
            found = _contracted(first, one, other, row, some).double()
            answer[:, row, some] = found
            if symmetric:
                answer[:, some, row] = found.mT
    return answer


def _contracted(
    first: Callable[[slice, slice], Tensor], one: Tensor, other: Tensor, rows: slice, others: slice
) -> Tensor:
    """``[G, rows, others]`` of the same."""
    products = first(rows, others) * _token_gram(one, other, rows, others, one is other)
    return products.view(len(products), -1, one.shape[2], products.shape[2] // other.shape[2], other.shape[2]).sum(
        (2, 4)
    )


def _token_gram(one: Tensor, other: Tensor, rows: slice, others: slice, same: bool) -> Tensor:
    """``[G, rows P, others S]``."""
    return matmul32(*_sides(one, other, rows, others, same))


def _sides(one: Tensor, other: Tensor, rows: slice, others: slice, same: bool) -> tuple[Tensor, Tensor]:
    """The tokens of some rows of both as the two sides of a product."""
    left = for_products(_tokens(one, rows))
    return left, (left if same and rows is others else for_products(_tokens(other, others))).mT


def _tokens(tensor: Tensor, rows: slice) -> Tensor:
    """``[G, rows P, d]`` of some rows of ``[n, G, P, d]``."""
    some = tensor if rows is ALL else tensor[rows]
    return some.transpose(0, 1).flatten(1, 2)


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
    if _by_tokens(factor, factor, groups, CPU):
        return gram(factor, groups), None
    return blocks_and_sum(factor, groups)


def may_fuse(one: Outer, groups: int) -> bool:
    """Whether these are pairs in half precision on a GPU."""
    pairs = 2 * groups == one.rows == len(one.inputs)
    return pairs and one.inputs.is_cuda and one.inputs.dtype in HALF


def _by_tokens(one: Outer, other: Outer, groups: int, rates: Rates | None = None) -> bool:
    """Whether token Grams are to be used, not blocks."""
    size = one.rows * one.grads.shape[-1] * one.inputs.shape[-1]
    return not few(size, one.grads.device.type) and cheaper_by_tokens(one, other, groups, rates)


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


def by_sum(factors: Sequence[Factor], groups: int) -> Tensor:
    """The same by writing the sum of all rows' gradients down, where a layer and its tied table allow it."""
    layers = [f for f in factors if type(f) is Outer and not f.transposed]
    tables = [f for f in factors if type(f) is Lookup]
    if len(layers) + len(tables) < len(factors):
        return of_uses(factors, groups)
    block = layers[0].block(ALL) if layers else tables[0].empty()
    for layer in layers[1:]:
        layer.add_block(ALL, block)
    for table in tables:
        table.add_block(ALL, block)
    rows = block.reshape(block.shape[0] // groups, groups, block.shape[1:].numel())
    return dots(rows, rows)
