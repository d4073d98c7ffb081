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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import as32, dots, matmul32
from dyn_probe.engine.factors import Factor, Lookup, Outer, Vector
from dyn_probe.engine.head_rows import HeadRows
from dyn_probe.engine.prefix import pairs_by_prefix

TRAFFIC = 40.0
"""Multiply-adds that take as long as moving one number to or from memory (measured 30 to 60 on CPUs and GPUs)."""
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
    if not cheaper_by_tokens(one, other, groups):
        return by_blocks(one, other, groups)
    if one is other and len(one.spans) == groups and 2 * groups == one.rows and one.inputs.device.type == "cpu":
        return pairs_by_prefix(as32(one.inputs), as32(one.grads), one.spans)
    a, b = _grouped(one.grads, groups), _grouped(other.grads, groups)
    return _contract(lambda i, j: matmul32(a[i], b[j].mT), _inputs(one, groups), _inputs(other, groups), one is other)


def _inputs(outer: Outer, groups: int) -> Tensor:
    return _grouped(outer.inputs.expand(outer.rows, -1, -1), groups)


def _lookups(one: Lookup, other: Lookup, groups: int, metric: Tensor | None) -> Tensor:
    """Two readings of one table."""
    grads = _scaled(one, metric)
    if groups == 1 and len(one.ids) == len(other.ids) == 1 < one.rows:
        same = (one.ids[0][:, None] == other.ids[0][None]).to(as32(grads).dtype)
        return _through(grads, same, other.grads)
    x, y = (_grouped(f.ids.expand(f.rows, -1), groups) for f in (one, other))
    a, b = _grouped(grads, groups), _grouped(other.grads, groups)
    return _contract(lambda i, j: x[i].unsqueeze(-1) == y[j].unsqueeze(-2), a, b, one is other)


def _head_and_table(head: Outer, table: Lookup, groups: int, metric: Tensor | None) -> Tensor:
    """A head and the table it is tied to: ``Σ_{t,s} B_i[t, x_j[s]] (A_i[t]·D_j[s])``."""
    if head.transposed:
        return _vectors(dense(head), dense(table), groups, metric)
    ids = _grouped(table.ids.expand(table.rows, -1), groups)
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
    whole = one.step >= one.rows and other.step >= other.rows
    parts = [slice(None)] if whole else [slice(g, None, groups) for g in range(groups)]
    found = []
    for rows in parts:
        within = groups if rows == slice(None) else 1
        left = one.take(rows)
        right = left if one is other else other.take(rows)
        left = left if metric is None else as32(left) * metric.flatten()
        found.append(dots(_grouped(left, within), _grouped(right, within)))
    return torch.cat(found)


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


def _contract(first: Callable[[int, slice], Tensor], one: Tensor, other: Tensor, symmetric: bool) -> Tensor:
    """``[G, n, m]``: ``Σ_{t,s} X[t,s] (v[t]·v'[s])`` from ``X = first(i, js) [m, G, P, S]`` and ``v [n, G, P, d]``."""
    n, m, groups = len(one), len(other), one.shape[1]
    answer = one.new_zeros(groups, n, m, dtype=torch.float64)
    step = max(1, CHUNK // max(1, groups * one.shape[2] * other.shape[2]))
    for i in range(n):
        for j in range(i if symmetric else 0, m, step):
            some = slice(j, min(j + step, m))
            products = first(i, some) * matmul32(one[i], other[some].mT)
            found = products.sum((-1, -2)).double().T
            answer[:, i, some] = found
            if symmetric:
                answer[:, some, i] = found
    return answer


def _through(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """``[1, n, m]``: ``⟨B_i, S B'_j⟩`` for ``B [n, P, q]``, ``S [P, P']``, ``B' [m, P', q]``: shared inputs or ids."""
    mixed = matmul32(middle.to(as32(right).dtype), as32(right))
    return (as32(left).flatten(1) @ mixed.flatten(1).T).double()[None]


def by_blocks(one: Outer, other: Outer, groups: int, metric: Tensor | None = None) -> Tensor:
    """From the rows' gradients, a slice of the parameter's first dimension at a time.

    Args:
        metric: in the parameter's shape.
    """
    sizes = (one.grads.shape[-1], one.inputs.shape[-1])
    first, rest = sizes[::-1] if one.transposed else sizes
    width = max(1, CHUNK // max(1, one.rows * rest))
    total = one.grads.new_zeros((), dtype=torch.float64)
    for begin in range(0, first, width):
        entries = slice(begin, min(begin + width, first))
        left = one.block(entries)
        right = left if one is other else other.block(entries)
        left = left if metric is None else left * metric[entries].to(left.dtype)
        total = total + dots(_grouped(left.flatten(1), groups), _grouped(right.flatten(1), groups))
    return total


def cheaper_by_tokens(one: Outer, other: Outer, groups: int) -> bool:
    """Whether token Grams cost less than blocks: multiply-adds plus ``TRAFFIC`` times numbers moved."""
    length, other_length = one.grads.shape[1], other.grads.shape[1]
    p, q = one.inputs.shape[-1], one.grads.shape[-1]
    within = one.rows * other.rows // groups
    n = one.rows // groups
    products = within * (n + 1) / (2 * n) if one is other else within
    tokens = products * length * other_length * (p + q + TRAFFIC)
    multiplied = within * p * q if groups == 1 else 0
    blocks = one.rows * length * p * q + multiplied + 3 * TRAFFIC * one.rows * p * q
    return tokens <= blocks
