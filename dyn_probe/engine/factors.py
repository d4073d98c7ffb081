"""What a use of a parameter leaves behind: every row's gradient in factored form, not a matrix of the parameter's size.

A row is one gradient that is compared with others: a response, or a single token. Letters: ``R`` rows, ``P`` positions,
``p`` inputs, ``q`` outputs, ``A [R, P, p]`` a layer's inputs, ``B [R, P, q]`` its output-gradients. Where all rows
share the same inputs (the tokens of one response do), ``A`` is ``[1, P, p]``.

Every factor knows its rows' gradients one by one (``dense``), their inner products with a direction (``along``) and
their weighted sum (``weighted``), outer products and lookups also a slice of all rows' gradients (``block``,
``add_block``); how two factors of one parameter multiply is ``products.PRODUCTS``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import as32, matmul32
from dyn_probe.engine.layout import Span
from dyn_probe.engine.routes.merged import merged
from dyn_probe.engine.routes.prefix import along_by_prefix

ALL = slice(None)
"""Without any slicing, where it is this very object."""


@dataclass(eq=False)
class RowGradients:
    """What all forms have: ``grads [R, …]``, linear in the rows' gradients."""

    grads: Tensor
    form: ClassVar[str]

    @property
    def rows(self) -> int:
        return len(self.grads)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in vars(self).values() if isinstance(t, Tensor) and t.is_floating_point())

    def settled(self) -> Any:
        """The factor without what would be made later, from parameters that have moved by then."""
        return self

    def shared(self) -> Any:
        """The factor of rows that have the same inputs, which then are kept once."""
        return self

    def scaled(self, weights: Tensor) -> Any:
        """The factor with row ``i``'s gradient multiplied by ``weights[i]``."""
        return replace(self, grads=self._times(weights))

    def part(self, rows: slice) -> Any:
        """The factor of some rows, for their weighted sum; None where it cannot be divided."""
        return None

    def weighted(self, coefficients: Tensor, total: Tensor | None, shape: torch.Size) -> Tensor:
        """``total + Σ_i c_i grad_i`` in the parameter's ``shape``; ``total`` is added to in place."""
        raise NotImplementedError

    def trained(self, coefficients: Tensor, total: Tensor | None, shape: torch.Size) -> Tensor:
        """The same, rounded as a training in the factor's type rounds it."""
        return self.weighted(coefficients, total, shape)

    def _times(self, weights: Tensor) -> Tensor:
        grads = as32(self.grads)
        return grads * weights.to(grads).reshape(-1, *[1] * (grads.dim() - 1))


@dataclass(eq=False)
class Outer(RowGradients):
    """``grad_i = Σ_t B_i[t] ⊗ A_i[t]``: the weight of a linear layer (``[q, p]``, or ``[p, q]`` if transposed).

    Args:
        grads: ``B``.
        inputs: ``A``.
        transposed: whether the parameter is ``[inputs, outputs]``.
        spans: where the rows of a pair have tokens, as a hint.
        cut: whether rows were cut to different positions, so that their inputs are never the same.
        live: ``[R, 2]`` (int32) where each row has gradients, ``[first, last)``, as a hint on a device.
    """

    inputs: Tensor
    transposed: bool = False
    spans: tuple[Span, ...] = ()
    cut: bool = False
    live: Tensor | None = None
    form: ClassVar[str] = "outer"

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """What the parameter's first dimension belongs to, and its second: ``(B, A)``, or ``(A, B)`` if transposed."""
        return (self.inputs, self.grads) if self.transposed else (self.grads, self.inputs)

    def turned(self) -> Outer:
        """The same of the transposed parameter."""
        return replace(self, transposed=not self.transposed)

    def shared(self) -> Outer:
        return self if self.cut else replace(self, inputs=self.inputs[:1])

    def part(self, rows: slice) -> Outer:
        return Outer(self.grads[rows], for_rows(self.inputs, self.rows)[rows], self.transposed)

    def block(self, entries: slice, out: Tensor | None = None) -> Tensor:
        """``[R, entries, …]``: the gradients of some entries of the first dimension; memory ``out`` may be used."""
        left, right = self.sides
        left = (left if entries is ALL else left[:, :, entries]).mT
        left, right = for_rows(left, self.rows), for_rows(right, self.rows)
        if out is None or not left.dtype == right.dtype == out.dtype:
            return matmul32(left, right)
        size = torch.Size((self.rows, left.shape[1], right.shape[2]))
        return torch.bmm(left, right, out=out[: size.numel()].view(size))

    def add_block(self, entries: slice, block: Tensor) -> None:
        """Add the same to ``block``."""
        block += self.block(entries)

    def dense(self, row: int) -> Tensor:
        """``[n]`` the gradient of one row."""
        block = matmul32(self.grads[row].T, for_rows(self.inputs, self.rows)[row])
        return (block.T if self.transposed else block).flatten()

    def along(self, direction: Tensor) -> Tensor:
        """``[R]`` inner products with ``direction``, in the parameter's shape."""
        matrix = direction.T if self.transposed else direction
        if self.spans and self.inputs.device.type == "cpu":
            found = along_by_prefix(as32(self.inputs), as32(self.grads), self.spans, as32(matrix))
            if found is not None:
                return found
        return (matmul32(self.grads, matrix) * as32(self.inputs)).sum((1, 2))

    def weighted(self, coefficients: Tensor, total: Tensor | None, shape: torch.Size) -> Tensor:
        return added(total, self.product(self._times(coefficients)))

    def trained(self, coefficients: Tensor, total: Tensor | None, shape: torch.Size) -> Tensor:
        """In half precision ``c_i B_i`` is rounded to the type of ``B``, as the backward of a loss with these
        coefficients rounds it, and the sums run in float32."""
        size = coefficients.abs().amax().clamp(min=1e-30)
        shares = (coefficients / size).float().reshape(-1, 1, 1)  # no overflow, and none but small ones underflow
        scaled = self.product((self.grads * shares).to(self.grads.dtype))
        return added(total, scaled * size.to(scaled))

    def product(self, grads: Tensor) -> Tensor:
        """The sum of all rows' gradients with ``grads`` for ``B``, in the parameter's shape."""
        found = merged(self.inputs, grads, self.spans) if self.spans and grads.device.type == "cpu" else None
        inputs, grads = found or (for_rows(self.inputs, self.rows).flatten(0, 1), grads.flatten(0, 1))
        left, right = (inputs, grads) if self.transposed else (grads, inputs)
        return matmul32(left.T, right)

    def columns(self, row: int, ids: Tensor) -> Tensor:
        """``[G, P, m, S]``: output-gradients ``B_i[t, x]`` of the rows ``row`` of each group, at ``ids [m, G, S]``."""
        grads = self.grads.unflatten(0, (-1, ids.shape[1]))[row]
        return _columns(grads, ids.transpose(0, 1))

    def met(self, ids: Tensor) -> Outer:
        """What a table that is read at ``ids [m, G, S]`` needs of this factor: its inputs and these columns of ``B``.

        On a CPU every entry is kept once; elsewhere telling equal ones apart would stop the device.
        """
        kept, where = self._kept(ids)
        nothing = self.grads.new_empty(self.rows, 0)  # no view, which would keep all of ``B`` in memory
        return MetOuter(nothing, self.inputs, self.transposed, cut=self.cut, kept=kept, where=where)

    def _kept(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The columns, and where each position of the table's reading has its own."""
        if ids.device.type != "cpu":
            return self._all_columns(ids)
        entries, where = torch.unique(ids.transpose(0, 1), return_inverse=True)
        return self.grads.unflatten(0, (-1, ids.shape[1]))[..., entries], where

    def _all_columns(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The same, one column for each position."""
        where = torch.arange(ids[:, 0].numel(), device=ids.device).view(1, len(ids), -1)
        kept = [self.columns(row, ids).flatten(2) for row in range(self.rows // ids.shape[1])]
        return torch.stack(kept), where.expand(ids.shape[1], -1, -1)


@dataclass(eq=False, kw_only=True)
class MetOuter(Outer):
    """A head after its own products: of its output-gradients only the columns at which the tied table is read.

    Args:
        kept: ``[n, G, P, U]`` the columns.
        where: ``[G, m, S]`` the column of each position of the table's reading.
    """

    kept: Tensor
    where: Tensor
    trained, part = RowGradients.trained, RowGradients.part  # type: ignore[assignment]

    def columns(self, row: int, ids: Tensor) -> Tensor:
        return _columns(self.kept[row], self.where)


def for_rows(shared: Tensor, rows: int) -> Tensor:
    """What all rows may share, for each of them."""
    return shared if len(shared) == rows else shared.expand(rows, *[-1] * (shared.dim() - 1))


def _columns(grads: Tensor, ids: Tensor) -> Tensor:
    """``[G, P, m, S]``: of ``grads [G, P, V]`` the entries ``ids [G, m, S]``."""
    wanted = ids.flatten(1)[:, None].expand(-1, grads.shape[1], -1)
    return grads.gather(2, wanted).unflatten(2, (ids.shape[1], -1))


@dataclass(eq=False)
class Lookup(RowGradients):
    """``grad_i = Σ_t e_{x_i[t]} ⊗ D_i[t]``: an embedding's table ``[entries, d]`` read at ``ids [R or 1, P]``."""

    ids: Tensor
    entries: int
    form: ClassVar[str] = "lookup"

    def shared(self) -> Lookup:
        return replace(self, ids=self.ids[:1])

    def part(self, rows: slice) -> Lookup:
        return Lookup(self.grads[rows], for_rows(self.ids, self.rows)[rows], self.entries)

    def block(self, entries: slice) -> Tensor:
        """``[R, entries, d]``: the gradients of some of the table's entries."""
        shape = (self.rows, len(range(*entries.indices(self.entries))), self.grads.shape[-1])
        found = self.grads.new_zeros(shape, dtype=torch.promote_types(self.grads.dtype, torch.float32))
        self.add_block(entries, found)
        return found

    def add_block(self, entries: slice, block: Tensor) -> None:
        """Add the same to ``block``."""
        grads, begin, size = as32(self.grads), entries.start or 0, block.shape[1]
        place = self.ids + torch.arange(0, self.rows * size, size, device=self.ids.device)[:, None]
        if size == self.entries:
            block.flatten(0, 1).index_add_(0, place.flatten(), grads.flatten(0, 1).to(block.dtype))
            return
        inside = ((self.ids >= begin) & (self.ids < begin + size)).expand(place.shape)
        place = place - begin
        if grads.device.type == "cpu":  # elsewhere asking which are inside would stop the device
            place, grads = place[inside], grads[inside]
        else:
            place = torch.where(inside, place, 0).flatten()
            grads = grads.masked_fill(~inside[..., None], 0.0).flatten(0, 1)
        block.flatten(0, 1).index_add_(0, place, grads.to(block.dtype))

    def dense(self, row: int) -> Tensor:
        grads = as32(self.grads[row])
        table = grads.new_zeros(self.entries, grads.shape[-1])
        return table.index_add_(0, for_rows(self.ids, self.rows)[row], grads).flatten()

    def along(self, direction: Tensor) -> Tensor:
        return (as32(direction[self.ids]) * as32(self.grads)).sum((1, 2))

    def weighted(self, coefficients: Tensor, total: Tensor | None, shape: torch.Size) -> Tensor:
        scaled = self._times(coefficients).flatten(0, 1)
        total = scaled.new_zeros(shape) if total is None else total
        return total.index_add_(0, for_rows(self.ids, self.rows).flatten(), scaled.to(total))


@dataclass(eq=False)
class Vector(RowGradients):
    """``grad_i`` as it is, ``[R, n]``: biases, scales, and whatever the generic rule computes."""

    form: ClassVar[str] = "vector"
    step: ClassVar[int] = 1 << 30
    """How many rows may be in memory at once."""

    def part(self, rows: slice) -> Vector:
        return Vector(self.take(rows))

    def take(self, rows: slice) -> Tensor:
        """``[some, n]`` the gradients of some rows."""
        return self.grads if rows is ALL else self.grads[rows]

    def dense(self, row: int) -> Tensor:
        return as32(self.take(slice(row, row + 1))[0])

    def along(self, direction: Tensor) -> Tensor:
        flat = as32(direction.flatten())[:, None]
        return torch.cat([matmul32(self.take(rows), flat)[:, 0] for rows in self._parts()])

    def weighted(self, coefficients: Tensor, total: Tensor | None, shape: torch.Size) -> Tensor:
        for part in self._parts():
            rows = as32(self.take(part))
            total = added(total, (coefficients[part].to(rows) @ rows).reshape(shape))
        assert total is not None
        return total

    def _parts(self) -> list[slice]:
        return [slice(i, i + self.step) for i in range(0, self.rows, self.step)]


Factor = Outer | Lookup | Vector


def added(total: Tensor | None, found: Tensor) -> Tensor:
    """``total + found``, in place."""
    return found if total is None else total.add_(found)
