"""Following an optimizer's steps: what each step did to the recorded rows that wait for it.

Rows are handed over when their backward has run. When the optimizer's step begins, the trained weights are copied (the
backward has freed its activations by then); when it has been made, the rows' totals and pushes are computed, parameter
by parameter, and everything is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.engine.held import Held
from dyn_probe.engine.shield import Shield
from dyn_probe.engine.uses import trained_parameters
from dyn_probe.metric.across import AcrossProcesses
from dyn_probe.metric.applied import AppliedStep, wide
from dyn_probe.metric.clip_factor import Factor
from dyn_probe.metric.free_room import free_room
from dyn_probe.metric.pushes import Pushes, StepRows, take_apart
from dyn_probe.metric.row_products import Explained, Moved
from dyn_probe.metric.split import SplitMomentum, side_gradients
from dyn_probe.metric.step_facts import StepCounts, StepFacts, lost_by_storing, needs_a_look
from dyn_probe.metric.step_reader import StepReader
from dyn_probe.metric.whole import whole, whole_step


@dataclass(frozen=True, eq=False)
class Waiting:
    """One recorded batch whose step has not been made yet.

    Args:
        held: its rows' gradients.
        coefficients: ``c [2B]``.
        done: called with what the step did to the rows; None where only the gradient is waited for, or the rows are
            only followed.
        full: also give the Gram of all rows in the step's metric.
        along_gradient: called with ``⟨g_i, G⟩ [2B]``, ``G`` the step's whole gradient before it is clipped.
    """

    held: Held
    coefficients: Tensor
    done: Callable[[StepOutcome], None] | None
    full: bool = False
    along_gradient: Callable[[Tensor], None] | None = None


@dataclass(frozen=True, eq=False)
class StepOutcome:
    """What a step did to the rows of one batch, to first order: ``total [2B]`` (nats), and its parts where they were
    asked for and can be told."""

    total: Tensor
    pushes: Pushes | None = None


class StepWatch:
    """Follows the steps of one optimizer of one model; ``close`` when the training is over.

    Args:
        model: whose trained parameters are followed.
        optimizer: a torch optimizer or accelerate's wrapper of one; None: call ``begin`` and ``end`` yourself, around
            its step (totals only).
        split: keep the momentum of chosen and rejected gradients apart. Every step's rows have to be handed over then.
        averaged: over how many processes the gradients are averaged before the step.
        shield: around what runs inside the optimizer's step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any = None,
        split: bool = False,
        averaged: int = 1,
        shield: Shield | None = None,
    ) -> None:
        self.model, self.averaged = model, averaged
        self.split = SplitMomentum() if split else None
        self.facts = StepFacts()
        self.missed = False
        """Whether rows waited in vain for the step's whole gradient (``before_update``)."""
        self._names = {id(p): name for name, p in trained_parameters(model).items()}
        self._waiting: list[Waiting] = []
        self._pushes = False
        self._before: dict[str, Tensor] = {}
        self._turn = 0
        self._seconds = 0.0
        self._reader = None if optimizer is None else StepReader(
            optimizer, begins=lambda _: self.begin(), ends=self._ends, wanted=lambda: bool(self._waiting),
            shield=shield,
        )  # fmt: skip
        if self._reader is not None:
            self._reader.__enter__()
        shared = split and averaged > 1 and self._reader is not None and self._reader.hooked
        self._across = AcrossProcesses(optimizer) if shared else None

    @property
    def hooked(self) -> bool:
        """Whether the optimizer's steps are seen without a call."""
        return self._reader is not None

    @property
    def reason(self) -> str:
        """Why steps cannot be taken apart; "" where they can."""
        return "no optimizer was given" if self._reader is None else self._reader.reason

    def close(self) -> None:
        """Leave the optimizer alone again."""
        if self._reader is not None:
            self._reader.__exit__(None, None, None)
        self.drop()
        if self._across is not None:
            self._across.close()

    def drop(self) -> None:
        """Forget the rows that wait."""
        self.missed |= any(one.along_gradient is not None for one in self._waiting)
        self._waiting, self._before = [], {}
        if self._across is not None:
            self._across.drop()

    def expect(self, rows: Waiting, pushes: bool) -> None:
        """Hand over the rows of a batch whose backward has run.

        Args:
            pushes: whether the coming step is to be taken apart.
        """
        self._pushes = pushes if not self._waiting else self._pushes or pushes
        self._waiting.append(rows)

    def backward_ended(self) -> None:
        """A backward has run: whatever multiplies the gradients from here on is one factor (clipping, unscaling)."""
        if self._reader is not None and self._waiting:
            self._reader.backward_ended()

    @torch.no_grad()
    def before_update(self) -> None:
        """The step's gradient is complete, and not clipped yet: what it means for the rows that wait for it. Where
        parameters are split over processes, all of them must come here."""
        waiting = [one for one in self._waiting if one.along_gradient is not None]
        totals = [torch.zeros_like(one.coefficients) for one in waiting]
        for name, parameter in trained_parameters(self.model).items() if waiting else ():
            if parameter.grad is not None:
                gradient = whole(parameter.grad)
                totals = [t + one.held.along(name, gradient) for t, one in zip(totals, waiting, strict=True)]
        for one, total in zip(waiting, totals, strict=True):
            one.along_gradient(total)  # type: ignore[misc]
        kept = self._waiting if self.split is not None else [one for one in self._waiting if one.done is not None]
        self._waiting = [replace(one, along_gradient=None) for one in kept]

    def begin(self) -> None:
        """The optimizer's step begins: copy the weights that it will move."""
        if self._before:
            return
        started = time.perf_counter()
        trained = trained_parameters(self.model)
        self._names = {id(p): name for name, p in trained.items()}
        self._before = {name: trained[name].detach().clone() for name in self._to_copy(trained)}
        if self._across is not None and self.split is not None:
            self._across.give({name: self._sides(name, p.detach()) for name, p in trained.items()})
        self._seconds = time.perf_counter() - started

    def _to_copy(self, trained: Mapping[str, nn.Parameter]) -> list[str]:
        """Parameters whose values before the step are needed."""
        if not self._waiting:
            return []
        if self._pushes:
            return self._fitting(trained)
        if any(one.done is not None for one in self._waiting):
            return list(trained)
        return [] if self.split is None else self.split.new(trained)

    def end(self) -> None:
        """The optimizer's step has been made, and nothing is known of how: totals only."""
        self.facts = StepFacts(reason=self.reason)
        self._finish([Pushes.empty(w.held.rows, w.coefficients.device) for w in self._waiting], None)

    def _fitting(self, trained: Mapping[str, nn.Parameter]) -> list[str]:
        """Parameters whose copies fit into memory without raising the run's peak; the others have their turn later."""
        names = list(trained)
        room = free_room(trained[names[0]].device)
        start = self._turn % len(names)
        chosen: list[str] = []
        for name in [*names[start:], *names[:start]]:
            room -= trained[name].nbytes
            if chosen and room < 0:
                break
            chosen.append(name)
        self._turn += len(chosen)
        return chosen

    def _ends(self, reader: StepReader) -> None:
        if reader.reason or reader.skipped:
            self.end()
            self.facts = replace(self.facts, reason=reader.reason or "the step was skipped: the gradient overflowed")
            return
        read = reader.factor()
        factor = None if read.value is None else read.value / self.averaged
        if factor is None and not any(bool(w.coefficients.any()) for w in self._waiting):
            factor = 1.0 / self.averaged  # rows that the loss does not pull: whatever multiplies them
        self.facts = StepFacts(factor=factor, reason="" if factor is not None else read.reason)
        if self.split is not None and (ended := self._split_ended(read)):
            self.split, self.facts = None, replace(self.facts, reason=f"split momentum ended: {ended}")
        if not self._pushes:
            self._follow_all(reader, factor)
            self._end_broken_split()
            self._finish([Pushes.empty(w.held.rows, w.coefficients.device) for w in self._waiting], None)
            return
        started = time.perf_counter()
        held = sum(w.held.nbytes for w in self._waiting) + sum(copy.nbytes for copy in self._before.values())
        rows = [StepRows(w.held, w.coefficients, factor, w.full) for w in self._waiting]
        explained = Explained() if any(one.full for one in rows) else None
        pushes = take_apart(rows, self._moves(reader, factor), self.split, explained)
        self._end_broken_split()
        seconds = self._seconds + time.perf_counter() - started
        other_terms = None if explained is None else explained.other_terms
        self.facts = replace(self.facts, other_terms=other_terms, seconds=seconds, held=held)
        self._check_law(pushes, reader)
        self._finish(pushes, pushes)

    def _split_ended(self, read: Factor) -> str:
        """Why the sides cannot be kept apart in this step; "" where they can."""
        if self._across is None:
            pulled = any(bool(w.coefficients.any()) for w in self._waiting)
            return read.reason if read.value is None and pulled else ""
        return self._across.over or (read.reason if read.value is None else "")

    def _moves(self, reader: StepReader, factor: float | None) -> Iterator[Moved]:
        """Every moved parameter's step, whole; the split momentum and the facts are brought up to date on the way."""
        seen = StepCounts()
        for parameter, step, gradient in reader.steps():
            if (name := self._names.get(id(parameter))) is None:
                continue
            step, gradient, after = whole_step(step), whole(gradient), whole(parameter.detach())
            before = self._before.get(name)
            if before is None:  # its copy did not fit: the formula's weights in its place
                start = wide(after) - step.step(gradient, after)
                move = Moved(name, step, gradient, start, start + step.step(gradient, start))
            else:
                move = Moved(name, step, gradient, whole(before), after)
            seen.add(move, copied=before is not None)
            self._follow(name, step, gradient, move.before, factor)
            yield move
            if self.split is not None:
                self.split.forget(name)
        self.facts = replace(self.facts, **seen.facts())

    def _follow_all(self, reader: StepReader, factor: float | None) -> None:
        """Bring the split momentum up to date with a step that is not taken apart."""
        for parameter, step, gradient in reader.steps() if self.split is not None else ():
            if (name := self._names.get(id(parameter))) is not None:
                before = whole(self._before.get(name, parameter.detach()))  # the latter where it is not looked at
                self._follow(name, whole_step(step), whole(gradient), before, factor)

    def _follow(self, name: str, step: AppliedStep, gradient: Tensor, before: Tensor, factor: float | None) -> None:
        if self.split is None or factor is None:
            return
        sides = self._sides(name, before) if self._across is None else self._across.take(name)
        self.split.follows_from_the_start(name, step, gradient, before)
        self.split.update(name, step, (sides[0].mul_(factor), sides[1].mul_(factor)), self._pushes)

    def _sides(self, name: str, parameter: Tensor) -> tuple[Tensor, Tensor]:
        """What the waiting rows of either side put into a parameter's gradient, before κ."""
        return side_gradients([(w.held, w.coefficients) for w in self._waiting], name, parameter)

    def _end_broken_split(self) -> None:
        if self.split is not None and self.split.broken:
            self.facts = replace(self.facts, reason=f"split momentum ended: {self.split.broken}")
            self.split = None

    def _finish(self, found: Sequence[Pushes], pushes: Sequence[Pushes] | None) -> None:
        if pushes is None and any(one.done is not None for one in self._waiting):
            self._add_totals(found)
        waiting = self._waiting
        self.drop()
        for k, one in enumerate(waiting):
            if one.done is not None:
                one.done(StepOutcome(found[k].total, None if pushes is None else pushes[k]))

    @torch.no_grad()
    def _add_totals(self, found: Sequence[Pushes]) -> None:
        """``⟨g_i, Δθ⟩`` from the weights as they were stored."""
        trained = trained_parameters(self.model)
        for name, before in self._before.items():
            moved, after = wide(whole(before)), wide(whole(trained[name].detach()))
            torch.sub(after, moved, out=moved)  # the copy is no longer needed
            for one, pushes in zip(self._waiting, found, strict=True):
                pushes.total += one.held.along(name, moved)

    def _check_law(self, found: Sequence[Pushes], reader: StepReader) -> None:
        worst = max(float((p.rounding.abs() / p.size.clamp(min=1e-300)).max()) for p in found)
        self.facts = replace(self.facts, law7_error=worst)
        if needs_a_look(worst, self.model):
            copies = {key: self._before[name] for key, name in self._names.items() if name in self._before}
            self.facts = replace(self.facts, **lost_by_storing(reader.steps(), copies))
