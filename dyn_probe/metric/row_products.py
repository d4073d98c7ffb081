"""What pushes are made of: the rows' inner products with a step's directions and, in its metric, with each other.

On a CPU a direction by itself costs a product of the size of a forward, and there are several. Where a parameter's row
gradients have to be formed for the metric anyway, a slice of them at a time, everything is taken from that slice while
it is at hand: one such product altogether.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import matmul32
from dyn_probe.engine.held import Held
from dyn_probe.metric.applied import AppliedStep, RankOne, wide


@dataclass(frozen=True, eq=False)
class Moved:
    """One parameter's step as it was read, the gradient that the optimizer saw, the weights before and after."""

    name: str
    step: AppliedStep
    gradient: Tensor
    before: Tensor
    after: Tensor
    entries: slice = field(default_factory=lambda: slice(None))
    """Which of the parameter's first dimension these are."""

    def of(self, entries: slice) -> Moved:
        """The same of some entries of the parameter's first dimension."""
        parts = (self.gradient[entries], self.before[entries], self.after[entries])
        return Moved(self.name, self.step.of(entries), *parts, entries)


Directions = Callable[[Moved], Mapping[str, Tensor]]
"""What a step is made of, by name, in the shape of the parameter or of a slice of it."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a batch: their gradients, their coefficients ``[2B]``, and in how many groups they are compared."""

    held: Held
    coefficients: Tensor
    groups: int


@dataclass(eq=False)
class RowProducts:
    """``along``: name → ``[2B]`` (float64) ``⟨g_i, D⟩``; ``gram [G, n, n]`` (float64) ``⟨g_i, P g_j⟩`` in groups."""

    along: dict[str, Tensor]
    gram: Tensor


class Explained:
    """How much of the gradient that the optimizer saw is a sum of recorded rows' gradients, ``S = Σ_j c_j g_j``.

    ``1 − ⟨G, S⟩²/(‖G‖²‖S‖²)`` is the share of ``‖G‖²`` that no multiple of ``S`` explains: other terms of the loss, and
    pairs that other processes or unrecorded micro-batches brought. The factor κ cancels in it.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(2, 2, dtype=torch.float64)

    def add(self, gradient: Tensor, rows: Tensor) -> None:
        """The share of some of the parameters: ``G`` and ``S`` there."""
        both = torch.stack([wide(gradient).flatten(), rows.flatten().to(wide(gradient))])
        self._sums = self._sums.to(both.device) + (both @ both.T).double()

    @property
    def other_terms(self) -> float | None:
        """The share, from 0 to 1; None where either is 0 or not finite."""
        (gradient, both), (_, rows) = self._sums.tolist()
        if gradient * rows == 0 or not math.isfinite(gradient * rows):
            return None
        return max(0.0, 1.0 - both**2 / (gradient * rows))


def row_products(
    batches: Sequence[Rows], move: Moved, directions: Directions, explained: Explained | None = None
) -> list[RowProducts]:
    """The products of every batch's rows, over one parameter.

    Args:
        explained: completed on the way.
    """
    found = _in_one_pass(batches, move, directions, explained)
    if found is not None:
        return found
    if explained is not None:
        parts = [b.held.weighted(move.name, b.coefficients, move.gradient.shape) for b in batches]
        explained.add(move.gradient, sum((p for p in parts if p is not None), torch.zeros_like(wide(move.gradient))))
    whole, metric = directions(move), dense_metric(move.step, move.before)
    return [
        RowProducts(
            {name: batch.held.along(move.name, direction) for name, direction in whole.items()},
            batch.held.gram(move.name, batch.groups, metric),
        )
        for batch in batches
    ]


def _in_one_pass(
    batches: Sequence[Rows], move: Moved, directions: Directions, explained: Explained | None
) -> list[RowProducts] | None:
    """From slices of the row gradients; None where the factors' own products cost less."""
    shape, most = move.before.shape, max(b.held.rows for b in batches)
    sliced = [b.held.blocks(move.name, shape, most) for b in batches]
    opened = [one for one in sliced if one is not None]
    if not opened or len(opened) < len(batches):
        return None
    found: list[RowProducts] = []
    for tiles in zip(*(slices for _, slices in opened), strict=True):
        part = move.of(tiles[0][0])
        named = directions(part)
        right = torch.stack([direction.flatten() for direction in named.values()]).T
        metric = None if part.step.metric is None else dense_metric(part.step, part.before).flatten()
        summed = None if explained is None else torch.zeros_like(wide(part.gradient).flatten())
        for k, (batch, (_, rows)) in enumerate(zip(batches, tiles, strict=True)):
            along = dict(zip(named, matmul32(rows, right).double().T, strict=True))
            add_to(found, k, RowProducts(along, _gram(rows, metric, batch.groups)))
            if summed is not None:
                summed += ((batch.coefficients * opened[k][0]).to(rows) @ rows).to(summed)
        if explained is not None and summed is not None:
            explained.add(part.gradient, summed)
    for one, batch, (scale, _) in zip(found, batches, opened, strict=True):
        one.along = {name: values * scale for name, values in one.along.items()}
        grouped = scale.unflatten(0, (-1, batch.groups)).T
        one.gram = one.gram * grouped[:, :, None] * grouped[:, None, :]
    return found


def add_to(found: list[RowProducts], k: int, more: RowProducts) -> None:
    """Add a slice's products to those of batch ``k``."""
    if k == len(found):
        found.append(more)
        return
    found[k].gram += more.gram
    for name, values in more.along.items():
        found[k].along[name] += values


def _gram(rows: Tensor, metric: Tensor | None, groups: int) -> Tensor:
    """``[G, n, n]`` products in the metric, of ``rows [R, m]`` in groups ``[n, G]``."""
    scaled = rows if metric is None else rows * metric.to(rows.dtype)
    left, right = (t.unflatten(0, (-1, groups)).transpose(0, 1) for t in (scaled, rows))
    return torch.bmm(left, right.mT).double()


def dense_metric(step: AppliedStep, like: Tensor) -> Tensor:
    """``P`` as a tensor of the parameter's shape."""
    if step.metric is None:
        return torch.ones((), dtype=wide(like).dtype, device=like.device).expand(like.shape)
    return step.metric.dense() if isinstance(step.metric, RankOne) else step.metric
