"""From uses to parameters: every use is reduced to its inner products as soon as the backward brings it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import exact_products
from dyn_probe.engine.factors import Factor, Lookup, Outer, Vector
from dyn_probe.engine.products import by_sum, cross, gram
from dyn_probe.engine.routes.costs import few
from dyn_probe.engine.routes.weighed import Knows, Weighed, Weighing
from dyn_probe.engine.tap import Capture
from dyn_probe.engine.together import Arrived, Together
from dyn_probe.engine.totals import Totals
from dyn_probe.engine.uses import Call
from dyn_probe.errors import UnsupportedUse

SAFE = (1e-6, 1e6)
"""Row coefficients in this range are divided out of the answers; outside it, out of the gradients themselves, so that
products of small numbers do not underflow."""
SMALL = 1 << 20
"""Numbers of a parameter's gradients of all rows up to which they are kept to be reduced together with others."""
UNEQUAL = 1e-5
"""A row's tokens have one coefficient if they differ by no more than this share of it."""


class Assembly:
    """Collects one backward's uses into ``{parameter: answer}``: ``[pairs, 3]``, or ``[rows, rows]`` if ``full``.

    The three columns of a pair are ``‖g_w‖²``, ``‖g_l‖²`` and ``⟨g_w, g_l⟩``. All answers stay on the device.

    Args:
        capture: whose calls arrive here; its forward is over.
        full: compare all rows, not only those of a pair.
        coefficients: ``[rows]`` ``∂loss/∂(row log-probability)`` of the backward that is watched; the answers are
            those of the bare log-probabilities. None where the backward is of the log-probabilities themselves.
        hold: keep every use's factor in ``kept``, for products with other coefficients and directions.
        products: whether the rows' products are wanted; False, with ``hold``: the answers are 0.
        totals: sums up the gradient of the loss, where autograd does not.
        knows: what is known of the parameters before the backward; ``weighed`` then has the products with it.

    Rows are compared within ``groups``: the pairs, or one of all rows. ``row_scale [rows]`` is what a kept factor's
    rows are to be multiplied by, to be those of the bare log-probability; None for 1.
    """

    def __init__(
        self,
        capture: Capture,
        full: bool = False,
        coefficients: Tensor | None = None,
        hold: bool = False,
        totals: Totals | None = None,
        knows: Knows | None = None,
        products: bool = True,
    ) -> None:
        self.capture, self.full = capture, full
        pairs = capture.layout.responses // 2
        self.groups = 1 if full else pairs
        self.weighed: Weighed | None = None
        self._weighing = None if knows is None else Weighing(knows, pairs, self.groups)
        self.kept: dict[str, list[Factor]] = {}
        self._hold, self._products, self._totals = hold, products, totals
        self._answers: dict[str, Tensor] = {}
        self._stacked: list[tuple[Sequence[str], Tensor]] = []
        self._alone: dict[tuple[int, torch.dtype], list[tuple[Sequence[str], Tensor]]] = {}
        self._together = Together(capture.anchor.device.type, self._take_stacked)
        self._open: dict[str, list[Factor]] = {}
        self._summed: dict[str, list[Factor]] = {}
        self._expected = capture.expected
        inverse = None if coefficients is None else inverse_of(coefficients)
        early = coefficients is not None and _extreme(coefficients)
        self._early = inverse if early else None
        self.row_scale = None if early else inverse
        self._waits = not (hold or early or knows is not None)
        self._shared = {name for name, calls in self._expected.items() if calls != 1}

    def receive(self, call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Take one use from the backward.

        Raises:
            UnsupportedUse: the use's kind has no rule for one of its parameters.
        """
        with exact_products(self.capture.anchor.device.type):
            if self._may_wait(call) and self._together.add((call, saved, grads)):
                return
            if self._hold:  # without the graph that led to them
                saved = [tensor.detach() for tensor in saved]
            for local, factor in self._factors((call, saved, grads)).items():
                name = call.use.parameters[local]
                own = factor if self._early is None else factor.scaled(self._early)
                summed = self._take(name, own, call.module._parameters[local].numel())
                if self._totals is not None and not summed:
                    self._totals.add(name, factor)

    def _may_wait(self, call: Call) -> bool:
        """Whether nothing but the products of this one use is wanted of it."""
        return self._waits and self._shared.isdisjoint(call.use.parameters.values())

    def _factors(self, arrived: Arrived) -> dict[str, Factor]:
        call = arrived[0]
        found: dict[str, Factor] = call.kind.factors(*arrived)
        if found.keys() != call.trained:
            lost = ", ".join(sorted(call.trained - found.keys()))
            raise UnsupportedUse(f"{call}: no rule for its parameter {lost}")
        return found

    def _take_stacked(self, stacked: Arrived, calls: Sequence[Call]) -> None:
        """Several uses as one: their answers lie side by side in the groups."""
        for local, factor in self._factors(stacked).items():
            names = [call.use.parameters[local] for call in calls]
            if self._totals is not None:
                self._totals.add_stacked(names, factor)
            if type(factor) is Vector:
                self._wait(names, factor.grads.unflatten(0, (-1, len(names))))
            else:
                self._stack(names, gram(factor, self.groups * len(calls)))

    def _take(self, name: str, factor: Factor, size: int) -> bool:
        """One use; whether the sum of its rows has been taken with it."""
        if self._hold:
            if self.capture.survey.split:  # whole parameters are out of reach later
                factor = factor.settled()
            self.kept.setdefault(name, []).append(factor)
        if not self._products:
            return False
        if self._weighing is not None:
            return self._take_weighed(name, factor, self._weighing)
        several = self._expected[name] > 1
        small = few(self.capture.layout.responses * size, self.capture.anchor.device.type)
        if small and (several or type(factor) is Lookup):
            self._summed.setdefault(name, []).append(factor)
        elif several:
            self._combine(name, factor)
        elif type(factor) is Vector:  # small: all of them are reduced together
            self._wait([name], factor.grads.unsqueeze(1))
        elif self._totals is not None and self._early is None:
            self._add(name, self._totals.gram(name, factor, self.groups))
            return True
        else:
            self._add(name, gram(factor, self.groups))
        return False

    def _take_weighed(self, name: str, factor: Factor, weighing: Weighing) -> bool:
        """The same, with what is known of the parameter."""
        if self._expected[name] > 1:
            self._combine(name, factor)
        elif type(factor) is Vector and factor.grads.numel() <= SMALL:
            self._wait([name], factor.grads.unsqueeze(1))
            weighing.wait(name, factor)
            return False
        elif type(factor) is Outer and len(factor.inputs) == factor.rows:
            totals = self._totals if self._early is None else None
            answers, total = weighing.in_one_pass(name, factor, totals is not None)
            self._add(name, answers)
            if totals is not None and total is not None:
                totals.put(name, total)
            return totals is not None
        else:
            self._add(name, gram(factor, self.groups))
        weighing.use(name, factor)
        return False

    def _combine(self, name: str, factor: Factor) -> None:
        """A parameter with several uses: the gradient is their sum, so each use also meets those before it."""
        self._add(name, gram(factor, self.groups))
        for earlier in self._open.get(name, ()):
            mixed = cross(earlier, factor, self.groups)
            self._add(name, mixed + mixed.mT)
            if self._weighing is not None:
                self._weighing.meet(name, earlier, factor)
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

    def _stack(self, names: Sequence[str], answers: Tensor) -> None:
        """Answers ``[G k, n, n]`` of ``k`` parameters."""
        self._stacked.append((names, answers.unflatten(0, (self.groups, len(names)))))

    def _wait(self, names: Sequence[str], vectors: Tensor) -> None:
        """Vectors ``[R, k, n]`` of ``k`` parameters: small, and reduced with all others of their size."""
        self._alone.setdefault((vectors.shape[2], vectors.dtype), []).append((names, vectors))

    def _reduce_alone(self) -> None:
        """The vectors of parameters with one use, those of one size in one product; small ones with several."""
        for found in self._alone.values():
            names = [name for some, _ in found for name in some]
            vectors = found[0][1] if len(found) == 1 else torch.cat([values for _, values in found], 1)
            self._stack(names, gram(Vector(vectors.flatten(0, 1)), self.groups * len(names)))
        for name, factors in self._summed.items():
            self._add(name, by_sum(factors, self.groups))
        self._alone, self._summed = {}, {}

    def finish(self) -> tuple[list[str], Tensor]:
        """The parameters' names and their answers, ``[P, pairs, 3]`` or ``[P, rows, rows]``, after the backward; a
        trained parameter without a gradient has zeros."""
        with exact_products(self.capture.anchor.device.type):
            self._together.finish()
            self._reduce_alone()
            self._open = {}
            if self._weighing is not None:
                self.weighed = self._weighing.finish(self.row_scale)
            answers, names = self._all_answers()
            answers = (answers + answers.mT) / 2 if self.full else answers
            if self.row_scale is not None:
                weights = self.row_scale.unflatten(0, (-1, self.groups)).T[:, None]
                answers = answers * weights[..., None] * weights[..., None, :]
            return names, answers[0] if self.full else pair_columns(answers).transpose(0, 1)

    def _all_answers(self) -> tuple[Tensor, list[str]]:
        """``[G, parameters, n, n]`` and the parameters' names."""
        found = [*self._stacked]
        if self._answers:
            found.append((list(self._answers), torch.stack(list(self._answers.values()), 1)))
        names = [name for some, _ in found for name in some]
        silent = set(self._expected) - set(names)
        if silent:
            n = self.capture.layout.responses // self.groups
            zeros = self.capture.anchor.new_zeros(self.groups, len(silent), n, n, dtype=torch.float64)
            found.append((list(silent), zeros))
            names += silent
        return torch.cat([answers for _, answers in found], 1), names


def pair_columns(grams: Tensor) -> Tensor:
    """``[…, pairs, 3]`` from ``[…, pairs, 2, 2]``."""
    return torch.cat([grams.diagonal(dim1=-2, dim2=-1), grams[..., 0, 1:]], -1)


def inverse_of(coefficients: Tensor) -> Tensor:
    """``1 / c`` in float64; 0 where ``c`` is 0: such rows are left out."""
    return coefficients.detach().double().reciprocal().nan_to_num(nan=float("nan"), posinf=0.0, neginf=0.0)


def per_row(gradient: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """``[2B]`` coefficients, and ``[B]`` the pairs with a row whose tokens do not share one.

    Args:
        gradient: ``[2B]``, or ``[2B, L]`` of the tokens.
        mask: ``[2B, L]`` the tokens that count, with ``gradient [2B, L]``.
    """
    if mask is None:
        return gradient, gradient.new_zeros(len(gradient) // 2, dtype=torch.bool)
    inside = torch.where(mask, gradient, 0.0)
    mean = inside.sum(1) / mask.sum(1).clamp(min=1)
    spread = torch.where(mask, (gradient - mean[:, None]).abs(), 0.0).amax(1)
    return mean, (spread > UNEQUAL * mean.abs()).unflatten(0, (2, -1)).any(0)


def _extreme(coefficients: Tensor) -> bool:
    """Whether products of these coefficients could underflow; on a GPU asking would stop the device, and rows with
    such coefficients are marked there instead."""
    if coefficients.device.type != "cpu":
        return False
    size = np.abs(coefficients.detach().numpy())
    return bool(((size != 0) & ~((size >= SAFE[0]) & (size <= SAFE[1]))).any())
