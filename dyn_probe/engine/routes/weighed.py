"""Products in a metric and with directions that are known before the backward, from the pass that forms the gradients.

Where a row's gradient of a parameter stands in memory anyway, a slice at a time, ``⟨g_i, P g_j⟩`` of its pair and
``⟨g_i, D⟩`` cost a look at the slice. What ``P`` and ``D`` are is not asked here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import dots, matmul32
from dyn_probe.engine.factors import ALL, Factor, Outer
from dyn_probe.engine.products import cross, gram, may_fuse
from dyn_probe.engine.routes.blocks import by_blocks


class Known(Protocol):
    """What is known of one parameter before the backward."""

    def of(self, entries: slice) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """For some entries of the parameter's first dimension: the metric ``P`` (None for 1) and directions by name, in
        the shape of these entries."""


Knows = Callable[[str], Known]
"""Parameter's name → what is known of it."""


@dataclass(frozen=True, eq=False)
class Weighed:
    """What one backward gave, on its device in float64, of bare log-probabilities.

    Args:
        entries: parameter → ``[B, 3]``: ``⟨g_w, P g_w⟩``, ``⟨g_l, P g_l⟩``, ``⟨g_w, P g_l⟩``.
        along: parameter → direction → ``[2B]`` ``⟨g_i, D⟩``.
    """

    entries: Mapping[str, Tensor]
    along: Mapping[str, Mapping[str, Tensor]]

    def where(self, pairs: Tensor, other: Weighed) -> Weighed:
        """This one's numbers for ``pairs [B]``, the other's for the rest."""
        rows = pairs.repeat(2)
        return Weighed(
            {name: torch.where(pairs[:, None], found, other.entries[name]) for name, found in self.entries.items()},
            {
                name: {d: torch.where(rows, found, other.along[name][d]) for d, found in directions.items()}
                for name, directions in self.along.items()
            },
        )


class Weighing:
    """Collects them use by use.

    Args:
        knows: what is known of the parameters.
        pairs: ``B``; rows are ``[chosen; rejected]``.
        groups: in how many groups the backward's own products compare the rows: ``B``, or 1.
    """

    def __init__(self, knows: Knows, pairs: int, groups: int) -> None:
        self.knows, self.pairs, self.groups = knows, pairs, groups
        self._grams: dict[str, Tensor] = {}
        self._along: dict[str, dict[str, Tensor]] = {}

    def in_one_pass(self, name: str, factor: Outer, sum_up: bool) -> tuple[Tensor, Tensor | None]:
        """A parameter's only use: its plain products ``[G, n, n]`` and, if wanted, the sum of its rows."""
        if may_fuse(factor, self.groups) and (found := self._fused(name, factor, sum_up)) is not None:
            return found
        return self.by_blocks(name, factor)

    def _fused(self, name: str, factor: Outer, sum_up: bool) -> tuple[Tensor, Tensor | None] | None:
        """The same of pairs on a GPU, by the kernel that writes no row's gradient down; None where it does not run."""
        from dyn_probe.engine.kernels import known_kernel  # brings a compiler along, which a CPU has no use for

        metric, directions = self.knows(name).of(ALL)
        turned = [t.mT if factor.transposed else t for t in directions.values()]

        def slow() -> Tensor:
            alone = Weighing(self.knows, self.pairs, self.groups)
            plain, _ = alone.by_blocks(name, factor)
            along = [alone._along[name][direction] for direction in directions]
            rows = torch.stack(along, 1) if along else plain.new_empty(2 * self.pairs, 0)
            return known_kernel.columns(plain, alone._grams[name], rows)

        if metric is not None and factor.transposed:
            metric = metric.mT
        found = known_kernel.known_products(factor.inputs, factor.grads, metric, turned, slow, factor.live, sum_up)
        if found is None or (sum_up and found[1] is None):
            return None
        plain, weighed, rows = known_kernel.parts(found[0])
        self._add(name, weighed)
        for direction, values in zip(directions, rows.unbind(1), strict=True):
            self._add_along(name, direction, values)
        return plain, found[1].mT if found[1] is not None and factor.transposed else found[1]

    def by_blocks(self, name: str, factor: Outer) -> tuple[Tensor, Tensor]:
        """From gradients that are written down, a slice at a time."""
        sums: list[Tensor] = []
        answers = by_blocks(factor, factor, self.groups, sums=sums, seen=partial(self._see, name, self.knows(name)))
        return answers, torch.cat(sums) if len(sums) > 1 else sums[0]

    def _see(self, name: str, known: Known, entries: slice, block: Tensor) -> None:
        """One slice of the rows' gradients, ``[2B, entries, …]``."""
        metric, directions = known.of(entries)
        rows = block.flatten(1)
        grouped = rows.unflatten(0, (2, self.pairs))
        weighed = grouped if metric is None else grouped * metric.flatten().to(rows.dtype)
        self._add(name, dots(weighed, grouped))
        if directions:
            named = torch.stack([direction.flatten().to(rows.dtype) for direction in directions.values()])
            for direction, found in zip(directions, matmul32(rows, named.T).double().unbind(1), strict=True):
                self._add_along(name, direction, found)

    def use(self, name: str, factor: Factor) -> None:
        """One use of a parameter, from the factor's own products."""
        metric, directions = self.knows(name).of(ALL)
        self._add(name, gram(factor, self.groups, metric))
        for direction, tensor in directions.items():
            self._add_along(name, direction, factor.along(tensor).double())

    def meet(self, name: str, earlier: Factor, factor: Factor) -> None:
        """Two uses of one parameter: what their rows have in common."""
        metric, _ = self.knows(name).of(ALL)
        mixed = cross(earlier, factor, self.groups, metric)
        self._add(name, mixed + mixed.mT)

    def finish(self, inverse: Tensor | None) -> Weighed:
        """All of them.

        Args:
            inverse: ``[2B]`` by which each row is to be multiplied; None for 1.
        """
        scale = 1.0 if inverse is None else inverse
        rows = torch.ones(2 * self.pairs) if inverse is None else inverse
        chosen, rejected = rows.to(next(iter(self._grams.values()), rows)).chunk(2)
        of_pairs = torch.stack([chosen * chosen, rejected * rejected, chosen * rejected], 1)
        found = {n: torch.stack([g[:, 0, 0], g[:, 1, 1], g[:, 0, 1]], 1) * of_pairs for n, g in self._grams.items()}
        return Weighed(found, {n: {d: v * scale for d, v in one.items()} for n, one in self._along.items()})

    def _add(self, name: str, found: Tensor) -> None:
        """Products ``[B, 2, 2]`` of pairs, or ``[1, 2B, 2B]`` of all rows."""
        if len(found) != self.pairs or found.shape[1] > 2:
            sides = found[0].unflatten(0, (2, self.pairs)).unflatten(2, (2, self.pairs))
            found = sides.diagonal(dim1=1, dim2=3).permute(2, 0, 1)
        self._grams[name] = self._grams[name] + found if name in self._grams else found

    def _add_along(self, name: str, direction: str, found: Tensor) -> None:
        there = self._along.setdefault(name, {})
        there[direction] = there[direction] + found if direction in there else found
