"""From uses to parameters: every use is reduced to its inner products as soon as its parameter is complete."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyn_probe.capture.tap import Capture
from dyn_probe.capture.uses import Call
from dyn_probe.errors import UnsupportedUse
from dyn_probe.gram import tied
from dyn_probe.gram.directional import settled
from dyn_probe.gram.factors import Factor, Lookup, Outer, PerRow, Vector
from dyn_probe.gram.table import reduce
from dyn_probe.gram.wanted import Wanted, gram

SAFE = (1e-6, 1e6)
"""Row coefficients in this range are divided out of the answers; outside it, out of the gradients themselves, so that
products of small numbers do not underflow."""


class Assembly:
    """Collects one backward's uses into ``{parameter: answer}`` (``Wanted.shape()``, float64).

    Args:
        capture: whose calls arrive here.
        coefficients: ``[rows]`` ``∂loss/∂(row log-probability)`` of the backward that is watched; the answers are
            those of the bare log-probabilities. None where the backward is of the log-probabilities themselves.
        hold: keep every use's factor in ``kept``, for weight gradients with other coefficients.
        settle: keep no factor that would be computed later, when the parameters are out of reach.
    """

    def __init__(
        self,
        capture: Capture,
        full: bool = False,
        coefficients: Tensor | None = None,
        hold: bool = False,
        settle: bool = False,
    ) -> None:
        self.capture, self.full, self.settle = capture, full, settle
        self.kept: dict[str, list[Factor]] | None = {} if hold else None
        self.answers: dict[str, Tensor] = {}
        self._held: dict[str, list[Factor]] = {}
        self._heads: dict[str, tied.HeadPart] = {}
        self._inverse: Tensor | None = None
        self._early = False
        if coefficients is not None:
            self.divide_by(coefficients)

    @property
    def row_scale(self) -> Tensor:
        """``[rows]`` by which a kept factor's rows are to be multiplied to be those of the bare log-probability."""
        ones = torch.ones(self.capture.rows, dtype=torch.float64)
        return ones if self._inverse is None or self._early else self._inverse.cpu()

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.capture.rows, self.full)

    def divide_by(self, coefficients: Tensor) -> None:
        """Divide row ``i``'s gradient by ``coefficients[i]``; rows whose coefficient is 0 are left out (answer 0)."""
        c = coefficients.detach().double()
        self._inverse = torch.where(c == 0, 0.0, 1.0 / torch.where(c == 0, 1.0, c))
        size = c.abs()[c != 0]
        self._early = bool(size.numel()) and not bool((size.min() >= SAFE[0]) & (size.max() <= SAFE[1]))

    def receive(self, call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Take one use from the backward."""
        assert call.kind is not None
        with torch.no_grad(), torch.autocast(self.capture.anchor.device.type, enabled=False):
            found = call.kind.factors(call, saved, [self._rescaled(g) for g in grads] if self._early else grads)
            if found.keys() != call.trained:
                lost = ", ".join(sorted(call.trained - found.keys()))
                raise UnsupportedUse(
                    f"{call.use.name} ({type(call.module).__name__}): no rule for its parameter {lost}"
                )
            if self.settle:
                found = {name: settled([factor], call.rows)[0] for name, factor in found.items()}
            if self.kept is not None:
                for name, factor in found.items():
                    self.kept.setdefault(call.use.parameters[name], []).append(factor)
            alone = {name: f for name, f in found.items() if self._expected(call.use.parameters[name]) == 1}
            self._reduce_alone(call, alone)
            for name in found.keys() - alone.keys():
                self._combine(call.use.parameters[name], found[name])

    def _rescaled(self, grad: Tensor | None) -> Tensor | None:
        if grad is None or self._inverse is None:
            return grad
        rows = self.capture.rows
        grad = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
        return (grad.reshape(rows, -1) * self._inverse[:, None].to(grad.dtype)).reshape(grad.shape)

    def _expected(self, name: str) -> int:
        """How many calls use the parameter in this batch's forward."""
        users = [use.module for use in self.capture.uses if name in use.parameters.values()]
        return sum(self.capture.calls.get(module, 0) for module in users)

    def _reduce_alone(self, call: Call, found: dict[str, Factor]) -> None:
        """Parameters with this one use. Generic modules go group by group: few rows stand at once."""
        lazy = {n: f for n, f in found.items() if isinstance(f, PerRow)}
        for name, factor in found.items():
            if name not in lazy:
                self._add(call.use.parameters[name], reduce(factor, self.wanted))
        grams: dict[str, list[Tensor]] = {name: [] for name in lazy}
        for group in self.wanted.groups() if lazy else ():
            for name, factor in lazy.items():
                grams[name].append(gram(torch.stack([factor.dense(row) for row in group])))
            next(iter(lazy.values())).kept.clear()
        for name, parts in grams.items():
            self._add(call.use.parameters[name], self.wanted.of_groups(parts))

    def _combine(self, name: str, factor: Factor) -> None:
        """A parameter with several uses: a tied head meets its embedding, anything else waits for the end."""
        if tied.is_tied(self.capture.taken[name], factor) and isinstance(factor, Outer):
            lookup = next(call for call in self.capture.taken[name] if "ids" in call.notes)
            self._heads[name] = tied.head_part(factor, lookup.notes["ids"], self.wanted)
        elif name in self._heads and isinstance(factor, Lookup):
            self._add(name, tied.with_embedding(self._heads.pop(name), factor, self.wanted))
        else:
            self._held.setdefault(name, []).append(factor)

    def _add(self, name: str, answer: Tensor) -> None:
        self.answers[name] = self.answers[name] + answer if name in self.answers else answer

    def finish(self) -> dict[str, Tensor]:
        """The answers by parameter, after the backward; a trained parameter without a gradient has zeros."""
        with torch.no_grad():
            for name, head in self._heads.items():
                self._add(name, head.answer)
            for name, held in self._held.items():
                self._add(name, reduce(joined(held), self.wanted))
        self._heads, self._held = {}, {}
        answers = {n: self.answers.get(n) for use in self.capture.uses for n in use.parameters.values()}
        zeros = torch.zeros(self.wanted.shape(), dtype=torch.float64, device=self.capture.anchor.device)
        done = {name: zeros if answer is None else self.wanted.symmetric(answer) for name, answer in answers.items()}
        if self._inverse is not None and not self._early:
            return {name: self.wanted.weighted(answer, self._inverse) for name, answer in done.items()}
        return done


def joined(factors: Sequence[Factor]) -> Factor:
    """One factor for the sum of several uses of one parameter."""
    first = factors[0]
    if len(factors) == 1:
        return first
    if isinstance(first, Outer) and all(isinstance(f, Outer) and f.transposed == first.transposed for f in factors):
        outers = [f for f in factors if isinstance(f, Outer)]
        inputs, grads = torch.cat([f.inputs for f in outers], 1), torch.cat([f.grads for f in outers], 1)
        return Outer(inputs, grads, first.transposed, first.wide)
    if isinstance(first, Lookup) and all(isinstance(f, Lookup) for f in factors):
        lookups = [f for f in factors if isinstance(f, Lookup)]
        return Lookup(torch.cat([f.ids for f in lookups], 1), torch.cat([f.grads for f in lookups], 1), first.entries)
    if isinstance(first, Vector) and all(isinstance(f, Vector) for f in factors):
        return Vector(torch.stack([f.values for f in factors if isinstance(f, Vector)]).sum(0))
    return PerRow(lambda row: torch.stack([f.dense(row) for f in factors]).sum(0), {})
