"""From uses to parameters: every use is reduced to its inner products as soon as the backward brings it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import as32, dots, exact_products
from dyn_probe.engine.factors import Factor, Outer, Vector
from dyn_probe.engine.products import cross, gram
from dyn_probe.engine.tap import Capture
from dyn_probe.engine.uses import Call, is_split
from dyn_probe.errors import UnsupportedUse

SAFE = (1e-6, 1e6)
"""Row coefficients in this range are divided out of the answers; outside it, out of the gradients themselves, so that
products of small numbers do not underflow."""


class Assembly:
    """Collects one backward's uses into ``{parameter: answer}``: ``[pairs, 3]``, or ``[rows, rows]`` if ``full``.

    The three columns of a pair are ``‖g_w‖²``, ``‖g_l‖²`` and ``⟨g_w, g_l⟩``. All answers stay on the device.

    Args:
        capture: whose calls arrive here; its forward is over.
        full: compare all rows, not only those of a pair.
        coefficients: ``[rows]`` ``∂loss/∂(row log-probability)`` of the backward that is watched; the answers are
            those of the bare log-probabilities. None where the backward is of the log-probabilities themselves.
        hold: keep every use's factor in ``kept``, for products with other coefficients and directions.
    """

    def __init__(
        self, capture: Capture, full: bool = False, coefficients: Tensor | None = None, hold: bool = False
    ) -> None:
        self.capture, self.full = capture, full
        self.kept: dict[str, list[Factor]] = {}
        self._hold, self._split = hold, is_split(capture.model)
        self._answers: dict[str, Tensor] = {}
        self._alone: dict[tuple[torch.Size, torch.dtype], list[tuple[str, Tensor]]] = {}
        self._open: dict[str, list[Factor]] = {}
        self._expected = capture.expected
        self._inverse = None if coefficients is None else inverse_of(coefficients)
        self._early = coefficients is not None and _extreme(coefficients)

    @cached_property
    def groups(self) -> int:
        """Groups of rows that are compared with each other: the pairs, or one of all rows."""
        return 1 if self.full else self.capture.layout.responses // 2

    @property
    def row_scale(self) -> Tensor | None:
        """``[rows]`` by which a kept factor's rows are to be multiplied to be those of the bare log-probability."""
        return None if self._early else self._inverse

    def receive(self, call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Take one use from the backward.

        Raises:
            UnsupportedUse: the use's kind has no rule for one of its parameters.
        """
        with exact_products(self.capture.anchor.device.type):
            found = call.kind.factors(call, saved, grads)
            if found.keys() != call.trained:
                lost = ", ".join(sorted(call.trained - found.keys()))
                raise UnsupportedUse(f"{call}: no rule for its parameter {lost}")
            for local, factor in found.items():
                if self._early and self._inverse is not None:
                    factor = factor.scaled(self._inverse)
                self._take(call.use.parameters[local], factor)

    def _take(self, name: str, factor: Factor) -> None:
        if self._hold:
            factor = factor.settled() if self._split else factor  # whole parameters are out of reach later
            self.kept.setdefault(name, []).append(factor)
        if self._expected[name] > 1:
            self._combine(name, factor)
        elif type(factor) is Vector:  # small: all of them are reduced together
            self._alone.setdefault((factor.grads.shape, factor.grads.dtype), []).append((name, factor.grads))
        else:
            self._add(name, gram(factor, self.groups))

    def _combine(self, name: str, factor: Factor) -> None:
        """A parameter with several uses: the gradient is their sum, so each use also meets those before it."""
        self._add(name, gram(factor, self.groups))
        for earlier in self._open.get(name, ()):
            mixed = cross(earlier, factor, self.groups)
            self._add(name, mixed + mixed.mT)
        self._open.setdefault(name, []).append(self._for_later(name, factor))

    def _for_later(self, name: str, factor: Factor) -> Factor:
        """Of a head that is tied to an embedding, only what the embedding's table will need: the rest is dropped."""
        calls = self.capture.taken[name]
        tables = [call.notes["ids"] for call in calls if "ids" in call.notes]
        if len(calls) == 2 and len(tables) == 1 and isinstance(factor, Outer) and not factor.transposed:
            return factor.met(tables[0].unflatten(0, (-1, self.groups)))
        return factor

    def _add(self, name: str, answer: Tensor) -> None:
        self._answers[name] = self._answers[name] + answer if name in self._answers else answer

    def _reduce_alone(self) -> None:
        """The vectors of parameters with one use: those of one size in one product."""
        for vectors in self._alone.values():
            stacked = as32(torch.stack([values for _, values in vectors])).unflatten(1, (-1, self.groups))
            for (name, _), answer in zip(vectors, dots(stacked, stacked), strict=True):
                self._add(name, answer)
        self._alone = {}

    def finish(self) -> dict[str, Tensor]:
        """The answers by parameter, after the backward; a trained parameter without a gradient has zeros."""
        with exact_products(self.capture.anchor.device.type):
            self._reduce_alone()
            self._open = {}
            names = list(dict.fromkeys(n for use in self.capture.uses for n in use.parameters.values()))
            n = self.capture.layout.responses // self.groups
            zeros = torch.zeros(self.groups, n, n, dtype=torch.float64, device=self.capture.anchor.device)
            stacked = torch.stack([self._answers.get(name, zeros) for name in names])
            stacked = (stacked + stacked.mT) / 2
            if self._inverse is not None and not self._early:
                weights = self._inverse.unflatten(0, (n, self.groups)).T
                stacked = stacked * weights[:, :, None] * weights[:, None, :]
            found = stacked[:, 0] if self.full else pair_columns(stacked)
        return dict(zip(names, found, strict=True))


def pair_columns(grams: Tensor) -> Tensor:
    """``[…, pairs, 3]`` from ``[…, pairs, 2, 2]``."""
    return torch.stack([grams[..., 0, 0], grams[..., 1, 1], grams[..., 0, 1]], -1)


def inverse_of(coefficients: Tensor) -> Tensor:
    """``1 / c`` in float64; 0 where ``c`` is 0: such rows are left out."""
    c = coefficients.detach().double()
    return torch.where(c == 0, 0.0, 1.0 / torch.where(c == 0, 1.0, c))


def _extreme(coefficients: Tensor) -> bool:
    """Whether products of these coefficients could underflow; on a GPU asking would stop the device, and rows with
    such coefficients are marked there instead."""
    if coefficients.device.type != "cpu":
        return False
    size = coefficients.abs()[coefficients != 0]
    return bool(size.numel()) and not bool((size.min() >= SAFE[0]) & (size.max() <= SAFE[1]))
