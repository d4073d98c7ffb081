"""From the optimizer's steps to the trace: recorded batches wait for their step, and what it did is filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.engine.answer import Products
from dyn_probe.engine.fetching import fetching
from dyn_probe.engine.held import Held
from dyn_probe.engine.recording import Recording
from dyn_probe.engine.routes.weighed import Knows
from dyn_probe.engine.shield import Shield
from dyn_probe.engine.survey import distributed
from dyn_probe.errors import BadInput, unknown
from dyn_probe.metric.last_metric import squares_in_last_metric
from dyn_probe.metric.previous import KnownPushes, PreviousPushes, check_coming
from dyn_probe.metric.step_facts import tolerance_of
from dyn_probe.metric.watch import StepOutcome, StepWatch, Waiting
from dyn_probe.metric.whole import averaged_over
from dyn_probe.probe.given import Given, numbers
from dyn_probe.probe.run_rows import RunRows
from dyn_probe.probe.schedule import Schedule
from dyn_probe.probe.step_rows import step_facts
from dyn_probe.probe.trace_rows import BatchRecord, gram_rows, known_rows, push_rows

NO_GRADIENT = (
    "not recorded: the step's batch is more than one recorded forward (several processes, or micro-batches), and "
    "probe.before_update() was not called between the last backward and optimizer.step()"
)
"""Why ``batch_delta_*`` is empty."""

OTHER_ROWS = "not recorded where a batch has responses without a partner: the step is made of their gradients too"
WEIGHTED = "not recorded where the loss weights the tokens of a response differently: its part is no multiple of a row"
SCALED = "not recorded where the loss is backpropagated as {scale:g} times the pairs' mean (loss_scale) in one forward"
"""Why it is empty where the batch is one forward: what its Gram does not give."""

UNEQUAL = (
    "the loss weights the tokens of a response differently, so that no push is a multiple of a response's gradient: "
    "totals only"
)
"""Why ``pushes`` is empty."""


METRICS = ("applied", "previous")
"""In whose step's metric pushes are: of the step itself, or also of the one before it."""


def check_followed(optimizer: torch.optim.Optimizer | None, metric: str, pushes: bool = False) -> None:
    """Refuse what cannot be followed here: asked before anything is opened or hooked, so that a refusal leaves nothing.

    Args:
        pushes: whether steps are taken apart, or the momentum of both sides is kept.

    Raises:
        BadInput: the metric is unknown, or cannot be had here; pushes without an optimizer.
    """
    if pushes and optimizer is None:
        raise BadInput("pushes are read off the optimizer's steps; write Probe(..., optimizer=optimizer)")
    if metric not in METRICS:
        raise BadInput(unknown("metric", metric, METRICS))
    if metric == "previous" and optimizer is None:
        raise BadInput("the last step's metric is read off the optimizer; write Probe(..., optimizer=optimizer)")
    if metric == "previous" and distributed():
        raise BadInput("metric 'previous' is for one process: with several, gradients are averaged; write 'applied'")
    if metric == "previous":
        check_coming(optimizer)


class Following:
    """What recorded batches are still to learn from the step that is made with their gradients.

    Args:
        model: whose parameters are followed.
        optimizer: the one whose steps are followed; None where the loop says so itself (``end``).
        rows: what is filled in.
        metric: "applied", or "previous": at recorded steps that are not taken apart, pushes in the last step's metric.
        split: follow every step, for the momentum of chosen and rejected gradients.
        update: the total change at every recorded step.
        in_parts: whether a step is made of more than one recorded forward.
        averaged: over how many processes gradients are averaged; None: read off the wrapper.
        shield: around what runs inside the optimizer's step.

    Raises:
        BadInput: what ``check_followed`` refuses; no hook is on the optimizer then.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        rows: RunRows,
        schedule: Schedule,
        *,
        metric: str,
        split: bool,
        update: bool,
        in_parts: bool,
        averaged: int | None,
        shield: Shield | None = None,
    ) -> None:
        check_followed(optimizer, metric)
        self.model, self.optimizer, self.rows, self.schedule = model, optimizer, rows, schedule
        self.split, self.update, self.in_parts = split, update, in_parts
        self._noted: dict[str, Any] = {}
        self._unpredicted: list[str] = []
        averaged = averaged_over(model) if averaged is None else averaged
        wanted = bool(schedule.metric_every or split or update) or (schedule.gram_every > 0 and in_parts)
        self._watch = StepWatch(model, optimizer, split, averaged, shield) if wanted else None
        self._previous = PreviousPushes(optimizer, shield) if metric == "previous" else None

    @property
    def of_changes(self) -> bool:
        """Whether any step's change of the weights is recorded."""
        return bool(self.schedule.metric_every or self.split or self.update or self._previous)

    def changes(self, step: int) -> bool:
        """Whether the change of the weights in this step is followed."""
        return self.split or (self.schedule.records(step) and (self.update or self.schedule.takes_apart(step)))

    def holds(self, step: int) -> bool:
        """Whether the batches of this step hold their gradients until the step is made."""
        return self.changes(step) or (self.in_parts and self.schedule.full_gram(step))

    def expect(self, step: int, record: BatchRecord | None, recording: Recording, products: Products) -> None:
        """Have the optimizer's step fill in a batch's record (None: only followed), where it is held."""
        held = None if self._watch is None else recording.held()
        changes, apart = self.changes(step), self.schedule.takes_apart(step)
        if apart and bool(products.unequal.any()):
            apart = False
            self._note({**self._noted, "reason": UNEQUAL})
        waits = self._watch is not None and held is not None
        if record is not None and products.gram is not None and not (waits and changes):
            self.rows.write("grams", gram_rows(record, products.gram))
        if self._watch is None or held is None:
            return
        predicted: Callable[[Tensor], None] | None = None
        if record is not None and self.in_parts and products.gram is not None and record.predicts:
            predicted = partial(self._predicted, record)
        done = partial(self._moved, record, products) if changes and record is not None else None
        full = apart and products.gram is not None
        self._watch.expect(Waiting(held, recording.coefficients, done, full, predicted), apart)
        self._watch.backward_ended()
        if changes and not self._watch.hooked:
            self._watch.begin()

    def knows(self, step: int, trained: Mapping[str, nn.Parameter]) -> Knows | None:
        """What is known of the ``trained`` parameters before this step's backward, where pushes are taken of it."""
        if self._previous is None or not self.schedule.records(step) or self.schedule.takes_apart(step):
            return None
        return self._previous.before_backward(trained)

    def expect_known(self, step: int, ids: Sequence[str], recording: Recording) -> None:
        """Have the optimizer's beginning write a batch's pushes in the last step's metric, where they were taken."""
        if self._previous is None or (found := recording.weighed) is None:
            return
        weighed, unequal = found

        def done(known: KnownPushes) -> None:
            arrived, flags = known.fetching(), fetching([unequal])

            def write() -> None:
                (values, reason), (undefined,) = arrived(), flags()
                self.rows.write("pushes", known_rows(step, self.rows.rank, ids, values, undefined))
                if reason:
                    self._note({**self._noted, "reason": f"own parts are not known: {reason}"})

            self.rows.later(step, write)

        self._previous.expect(weighed, recording.coefficients, done)

    def squares_in_last_metric(self, held: Held) -> Tensor | None:
        """``[2B]`` squared norms in the metric of the optimizer's last step; None where that is 1."""
        if self.optimizer is None:
            raise BadInput("the metric is read off the optimizer; write Probe(..., optimizer=optimizer)")
        return squares_in_last_metric(held, self.optimizer, self.model)

    @property
    def momentum(self) -> dict[str, list[Tensor]]:
        """The momentum of both sides, for a checkpoint; empty where it is not kept."""
        split = None if self._watch is None else self._watch.split
        return {} if split is None else dict(split.state())

    @momentum.setter
    def momentum(self, state: Mapping[str, list[Tensor]]) -> None:
        if self._watch is not None and self._watch.split is not None:
            self._watch.split.load(state)

    def backward_ended(self) -> None:
        """A backward of the step has run, recorded or not: what waits for the step reads κ from here on."""
        if self._previous is not None:
            self._previous.backward_ended()
        if self._watch is not None:
            self._watch.backward_ended()

    def before_update(self) -> None:
        """The step's gradient is complete, and not clipped yet."""
        self.backward_ended()
        if self._watch is not None:
            self._watch.before_update()

    def end(self) -> None:
        """The step has been made, where no optimizer says so."""
        if self._watch is not None and not self._watch.hooked:
            self._watch.end()

    def drop(self) -> None:
        """Let go of batches whose step never came."""
        if self._previous is not None:
            self._previous.drop()
        if self._watch is not None:
            self._watch.drop()
            if self._watch.missed:
                self.rows.manifest(batch_delta=NO_GRADIENT)

    def close(self) -> None:
        """Let go of the optimizer."""
        if self._previous is not None:
            self._previous.close()
        if self._watch is not None:
            self._watch.close()

    def note_unpredicted(self, record: BatchRecord, given: Given, products: Products) -> None:
        """Say why a batch has no ``batch_delta_*``, where its full Gram was recorded and its changes are predicted."""
        missing = "predicted_delta_chosen" in record.columns and "batch_delta_chosen" not in record.columns
        if self.in_parts or products.gram is None or not missing:
            return
        other = WEIGHTED if bool(products.unequal.any()) else SCALED.format(scale=given.scale)
        reason = other if given.alone else OTHER_ROWS
        if reason not in self._unpredicted:
            self._unpredicted.append(reason)
            self.rows.manifest(batch_delta="; ".join(self._unpredicted))

    def _predicted(self, record: BatchRecord, along: Tensor) -> None:
        """The step's whole gradient is known: ``batch_delta_*`` of a batch's rows, −η⟨g_i, G⟩."""
        if record.rate is not None:
            record.fill("batch_delta", numbers(-record.rate * along))

    def _moved(self, record: BatchRecord, products: Products, outcome: StepOutcome) -> None:
        """The optimizer's step has been made: what it did to a batch's rows."""
        if self._watch is None:
            return
        facts, pushes = self._watch.facts, outcome.pushes
        entries = None if pushes is None or pushes.entries is None else numbers(pushes.entries)
        record.add_update(numbers(outcome.total), entries)
        if products.gram is not None:
            self.rows.write("grams", gram_rows(record, products.gram, None if pushes is None else pushes.gram))
        if pushes is not None:
            self.rows.write("pushes", push_rows(record, pushes))
            alone = len(self.rows.batches) == 1 and not distributed()
            self.rows.step(record.step).update(step_facts(facts, products if alone else None))
        note = dict(self._noted)  # a violation stays noted
        if facts.reason and self.schedule.metric_every:
            note["reason"] = facts.reason
        if not (note.get("trusted") is False or facts.trusted(tolerance_of(self.model))):
            note |= {"trusted": False, "step": record.step, "law7_error": facts.law7_error}
        self._note(note)

    def _note(self, note: dict[str, Any]) -> None:
        """What ``run.json`` says of the pushes, where it is new."""
        if note and note != self._noted:
            self._noted = note
            self.rows.manifest(pushes=note)
