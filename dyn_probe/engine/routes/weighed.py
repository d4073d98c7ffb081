"""Products in a metric and with directions that are known before the backward, from the pass that forms the gradients.

Where a row's gradient of a parameter stands in memory anyway, a slice at a time, ``⟨g_i, P g_j⟩`` of its pair and
``⟨g_i, D⟩`` cost a look at the slice. What ``P`` and ``D`` are is not asked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import dots, matmul32
from dyn_probe.engine.factors import ALL, Factor, Outer, Vector
from dyn_probe.engine.products import cross, gram, may_fuse
from dyn_probe.engine.routes.blocks import blocks_and_sum

WAITING = 1 << 22
"""Numbers of small gradients from which on they wait no longer."""


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
        names: the ``P`` parameters.
        entries: ``[P, B, 3]``: ``⟨g_w, P g_w⟩``, ``⟨g_l, P g_l⟩``, ``⟨g_w, P g_l⟩``.
        along: direction → ``[P, 2B]`` ``⟨g_i, D⟩``, 0 of parameters that do not have it.
    """

    names: Sequence[str]
    entries: Tensor
    along: Mapping[str, Tensor]

    def where(self, pairs: Tensor, other: Weighed) -> Weighed:
        """This one's numbers for ``pairs [B]``, the other's for the rest; the other may have more parameters and
        directions, which these pairs do not reach."""
        places = {name: place for place, name in enumerate(other.names)}
        order = torch.tensor([places[name] for name in self.names], device=self.entries.device)
        rows = pairs.repeat(2)
        along = {d: torch.where(rows, found, other.along[d][order]) for d, found in self.along.items()}
        return Weighed(self.names, torch.where(pairs[:, None], self.entries, other.entries[order]), along)


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
        self._along: dict[str, Tensor] = {}
        self._directions: dict[str, tuple[str, ...]] = {}
        self._waiting: dict[tuple[int, bool, tuple[str, ...]], list[tuple[str, Tensor, list[Tensor]]]] = {}
        self._numbers = 0

    def in_one_pass(self, name: str, factor: Outer, sum_up: bool) -> tuple[Tensor, Tensor | None]:
        """A parameter's only use: its plain products ``[G, n, n]`` and, if wanted, the sum of its rows."""
        if may_fuse(factor, self.groups) and (found := self._fused(name, factor, sum_up)) is not None:
            return found
        return self._by_blocks(name, factor)

    def _fused(self, name: str, factor: Outer, sum_up: bool) -> tuple[Tensor, Tensor | None] | None:
        """The same of pairs on a GPU, by the kernel that writes no row's gradient down; None where it does not run."""
        from dyn_probe.engine.kernels import pair_kernel  # brings a compiler along, which a CPU has no use for

        metric, directions = self.knows(name).of(ALL)

        def slow() -> Tensor:
            alone = Weighing(self.knows, self.pairs, self.groups)
            plain, _ = alone._by_blocks(name, factor)
            along = alone._along.get(name, plain.new_empty(0, 2 * self.pairs)).T
            return pair_kernel.columns(plain, None if metric is None else alone._grams[name], along)

        grads, inputs = factor.sides
        found = pair_kernel.pair_products(inputs, grads, slow, factor.live, sum_up, metric, tuple(directions.values()))
        if found is None or (sum_up and found[1] is None):
            return None
        plain, weighed, along = pair_kernel.parts(found[0], metric is not None)
        self._add(name, weighed)
        self._add_along(name, directions, along.T)
        return plain, found[1]

    def _by_blocks(self, name: str, factor: Outer) -> tuple[Tensor, Tensor]:
        """From gradients that are written down, a slice at a time."""
        known = self.knows(name)

        def see(entries: slice, block: Tensor) -> None:
            metric, directions = known.of(entries)
            rows = block.flatten(1)
            grouped = rows.unflatten(0, (2, self.pairs))
            weighed = grouped if metric is None else grouped * metric.flatten().to(rows.dtype)
            self._add(name, dots(weighed, grouped))
            if directions:
                named = torch.stack([direction.flatten().to(rows.dtype) for direction in directions.values()])
                self._add_along(name, directions, matmul32(rows, named.T).double().T)

        return blocks_and_sum(factor, self.groups, see)

    def use(self, name: str, factor: Factor) -> None:
        """One use of a parameter, from the factor's own products."""
        metric, directions = self.knows(name).of(ALL)
        self._add(name, gram(factor, self.groups, metric))
        if directions:
            self._add_along(name, directions, torch.stack([factor.along(d) for d in directions.values()]).double())

    def wait(self, name: str, factor: Vector) -> None:
        """A small gradient ``[2B, n]``: all of one size are reduced together. What is known of the parameter is copied,
        since it may have changed in place by then."""
        metric, directions = self.knows(name).of(ALL)
        known = [*directions.values()] if metric is None else [metric, *directions.values()]
        copies = [one.flatten().to(torch.float64, copy=True) for one in known]
        key = (factor.grads.shape[1], metric is None, tuple(directions))
        self._waiting.setdefault(key, []).append((name, factor.grads, copies))
        self._numbers += factor.grads.numel()
        if self._numbers > WAITING:
            self._reduce()

    def _reduce(self) -> None:
        """Those that wait: ``k`` of one size as ``k`` times as many pairs."""
        for (_, plain, directions), waiting in self._waiting.items():
            rows = torch.stack([grads for _, grads, _ in waiting], 1).double()  # [2B, k, n]
            known = [torch.stack(some) for some in zip(*(copies for _, _, copies in waiting), strict=True)]  # [k, n]
            pairs = rows.unflatten(0, (2, self.pairs))
            weighed = pairs if plain else pairs * known.pop(0)
            flat = pairs.flatten(1, 2)
            found = dots(flat if plain else weighed.flatten(1, 2), flat).unflatten(0, (self.pairs, -1))  # [B, k, 2, 2]
            along = torch.stack([(rows * direction).sum(-1) for direction in known]) if known else None  # [D, 2B, k]
            for k, (name, _, _) in enumerate(waiting):
                self._add(name, found[:, k])
                if along is not None:
                    self._add_along(name, directions, along[..., k])
        self._waiting, self._numbers = {}, 0

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
        self._reduce()
        alike: dict[tuple[str, ...], list[str]] = {}
        for name in self._grams:
            alike.setdefault(self._directions.get(name, ()), []).append(name)
        names = [name for some in alike.values() for name in some]
        grams = torch.stack([self._grams[name] for name in names])
        entries = torch.cat([grams.diagonal(dim1=2, dim2=3), grams[..., 0, 1:]], -1)
        along = {d: self._along_all(d, alike) for d in dict.fromkeys(d for some in alike for d in some)}
        if inverse is not None:
            chosen, rejected = inverse.chunk(2)
            entries = entries * torch.stack([chosen * chosen, rejected * rejected, chosen * rejected], 1)
            along = {d: values * inverse for d, values in along.items()}
        return Weighed(names, entries, along)

    def _along_all(self, direction: str, alike: Mapping[tuple[str, ...], Sequence[str]]) -> Tensor:
        """``[P, 2B]`` of one direction, the parameters by the directions that they have."""
        parts = []
        for directions, names in alike.items():
            if direction in directions:
                place = directions.index(direction)
                parts.append(torch.stack([self._along[name] for name in names])[:, place])
            else:
                parts.append(self._grams[names[0]].new_zeros(len(names), 2 * self.pairs))
        return torch.cat(parts)

    def _add(self, name: str, found: Tensor) -> None:
        """Products ``[B, 2, 2]`` of pairs, or ``[1, 2B, 2B]`` of all rows."""
        if len(found) != self.pairs or found.shape[1] > 2:
            sides = found[0].unflatten(0, (2, self.pairs)).unflatten(2, (2, self.pairs))
            found = sides.diagonal(dim1=1, dim2=3).permute(2, 0, 1)
        self._grams[name] = self._grams[name] + found if name in self._grams else found

    def _add_along(self, name: str, directions: Iterable[str], found: Tensor) -> None:
        """``[D, 2B]`` products with directions."""
        self._directions[name] = tuple(directions)
        self._along[name] = self._along[name] + found if name in self._along else found
