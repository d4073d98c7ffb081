"""Which inner products are wanted: a pair's three, or the whole Gram of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Wanted:
    """``rows`` rows ``[chosen; rejected]``; ``full`` asks for ``[rows, rows]``, otherwise ``[pairs, 3]``.

    The three columns of a pair are ``‖g_w‖²``, ``‖g_l‖²`` and ``⟨g_w, g_l⟩``.
    """

    rows: int
    full: bool = False

    @property
    def pairs(self) -> int:
        return self.rows // 2

    def groups(self) -> list[list[int]]:
        """Rows that are compared with each other: each pair's two, or all."""
        return [list(range(self.rows))] if self.full else [[i, i + self.pairs] for i in range(self.pairs)]

    def shape(self) -> tuple[int, int]:
        return (self.rows, self.rows) if self.full else (self.pairs, 3)

    def combos(self) -> list[tuple[int, int]]:
        """The row pairs ``(i, j)`` whose products fill the answer, ``i <= j`` in ``full``."""
        if self.full:
            return [(i, j) for i in range(self.rows) for j in range(i, self.rows)]
        return [c for i in range(self.pairs) for c in ((i, i), (i + self.pairs, i + self.pairs), (i, i + self.pairs))]

    def from_combos(self, values: Tensor) -> Tensor:
        """The answer from one value per combo."""
        if not self.full:
            return values.reshape(self.pairs, 3)
        answer = values.new_zeros(self.rows, self.rows)
        i, j = torch.triu_indices(self.rows, self.rows, device=values.device)
        answer[i, j] = values
        answer[j, i] = values
        return answer

    def of_groups(self, grams: Sequence[Tensor]) -> Tensor:
        """The answer from one symmetric Gram per group."""
        if self.full:
            return grams[0]
        stacked = torch.stack(list(grams))
        return torch.stack([stacked[:, 0, 0], stacked[:, 1, 1], stacked[:, 0, 1]], 1)

    def symmetric(self, answer: Tensor) -> Tensor:
        """``answer`` without what rounding left of a difference between ``(i, j)`` and ``(j, i)``."""
        return (answer + answer.T) / 2 if self.full else answer

    def of_rows(self, values: Tensor) -> Tensor:
        """The answer from the gradients themselves, ``values [rows, n]``."""
        if self.full:
            return (values @ values.T).double()
        squared = (values * values).sum(1, dtype=torch.float64)
        half = self.pairs
        inner = (values[:half] * values[half:]).sum(1, dtype=torch.float64)
        return torch.stack([squared[:half], squared[half:], inner], 1)

    def of_dense(self, dense: Callable[[int], Tensor]) -> Tensor:
        """The answer from a function that gives one row's gradient ``[n]``, a group at a time in memory."""
        return self.of_groups([gram(torch.stack([dense(i) for i in group])) for group in self.groups()])

    def weighted(self, answer: Tensor, weights: Tensor) -> Tensor:
        """``answer`` with row ``i``'s gradient multiplied by ``weights[i]``."""
        if self.full:
            return answer * weights[:, None] * weights[None, :]
        chosen, rejected = weights[: self.pairs], weights[self.pairs :]
        return answer * torch.stack([chosen * chosen, rejected * rejected, chosen * rejected], 1)


def gram(values: Tensor) -> Tensor:
    """``[n, n]`` inner products of the rows of ``values [n, m]``, as float64."""
    return (values @ values.T).double()
