"""The forward and backward that is being recorded: what the loop says of it, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from dyn_probe.engine.answer import Products
from dyn_probe.engine.arithmetic import computing_in
from dyn_probe.engine.certificate import Certificate, SelfCheck, law_one
from dyn_probe.engine.recording import Recording
from dyn_probe.engine.shield import Shield
from dyn_probe.engine.survey import Survey, distributed
from dyn_probe.errors import BadInput
from dyn_probe.probe.budget import Thinned
from dyn_probe.probe.evaluation import Evaluation
from dyn_probe.probe.following import Following
from dyn_probe.probe.given import Given, Told
from dyn_probe.probe.head_inputs import HeadInputs
from dyn_probe.probe.precision import Precision
from dyn_probe.probe.run_rows import RunRows
from dyn_probe.probe.schedule import Schedule
from dyn_probe.probe.trace_rows import BatchRecord, ids_of


@dataclass
class BatchInProgress:
    """Takes one batch after another into the rows of its step.

    Args:
        shield: around the hooks of the recording.
        layers, separate: as for ``Probe``.
        in_parts: whether a step's batch is more than one forward.
        armed: whether the step in progress is recorded, or only measured.
        made: whether its gradients were made here, and not by autograd.
        given: what the loop has said of the batch; None outside ``around``.
        asks: whether every batch is asked for pulls that vanish, since one has been lost.
    """

    model: nn.Module
    rows: RunRows
    schedule: Schedule
    evaluation: Evaluation
    precision: Precision
    following: Following
    check: SelfCheck
    shield: Shield
    layers: bool
    separate: bool
    in_parts: bool
    armed: bool = False
    made: bool = False
    certificate: Certificate | None = None
    asks: bool = False
    recording: Recording | None = None
    given: Told | None = None
    survey: Survey = field(init=False)

    def __post_init__(self) -> None:
        self.survey = Survey(self.model)

    @contextmanager
    def around(
        self,
        step: int,
        ids: Sequence[str] | None,
        rate: float | None,
        segments: Tensor | None,
        responses: Tensor | None = None,
        measure: bool = False,
    ) -> Iterator[None]:
        """Around the forward and backward; see ``Probe.step``. Of a batch that is neither recorded nor measured, only
        what follows the optimizer's step is kept: no product is computed."""
        full, hold = self.schedule.full_gram(step), self.following.holds(step)
        products = self.armed or measure or not self.check.done
        self.survey.renew()
        knows = self.following.knows(step, self.survey.trained) if self.armed else None
        unused = all(p.grad is None for p in self.survey.trained.values())
        self.made = False
        hidden = None if responses is None else HeadInputs(responses, segments)
        seen = nullcontext() if hidden is None else hidden.seen(self.model, self.shield)
        try:
            with Recording(
                self.model, full, self.separate, hold, segments, self.shield, self.survey, knows, products
            ) as recording:
                self.recording = recording
                with seen:
                    yield
                self.shield.check()
                if self.given is None:
                    raise BadInput("probe.step was left without a call of probe.pairs(logps, …) in it")
                if hidden is not None and self.armed:
                    self.given = self.given.completed(None, hidden.columns())
                self._take(step, ids, rate, recording, unused)
        finally:
            self.recording = self.given = None

    def _take(
        self, step: int, ids: Sequence[str] | None, rate: float | None, recording: Recording, unused: bool
    ) -> None:
        """What one batch gave; ``unused`` where no parameter had a gradient before it."""
        assert self.given is not None
        self.evaluation.random |= recording.capture.random
        self.precision.types = recording.capture.dtypes
        device = recording.capture.anchor.device.type
        self.evaluation.arithmetic = partial(computing_in, recording.capture.around, device)
        ids = ids_of(step, self.rows.rank, ids, self.given.pairs)
        if not self.armed and isinstance(self.schedule, Thinned):
            self.rows.outline(step, ids, self.given)
        alone = unused and self.given.alone and not (self.separate or distributed())
        measured = recording.fetching()
        self.following.expect_known(step, ids, recording)
        finish = partial(
            self._finish, recording, measured, self.given.fetching(), step, ids if self.armed else None,
            rate, alone,
        )  # fmt: skip
        if self.check.done and not (self.schedule.full_gram(step) or self.following.holds(step)):
            self.rows.later(step, finish)  # nothing but the rows is wanted of it: the device need not stop
        else:
            finish()

    def _finish(
        self,
        recording: Recording,
        measured: Callable[[], Products],
        said: Callable[[], Given],
        step: int,
        ids: Sequence[str] | None,
        rate: float | None,
        alone: bool,
    ) -> None:
        """The batch's numbers have arrived; ``ids`` is None where it is not recorded."""
        products, record = measured(), None
        self.asks = self.asks or bool(products.lost.any())
        self._certify(recording, products)
        if ids is not None:
            given = said()
            record = BatchRecord.of(step, self.rows.rank, ids, given, products, rate, not self.in_parts)
            self.following.note_unpredicted(record, given, products)
            self.rows.add(record, products, recording.capture.uses if self.layers else None)
            alone = alone and self.rows.taken == 1 and not products.unequal.numpy().any()
            if products.gram is not None and alone:
                self.rows.step(step)["law1_error"] = law_one(self.model, products.gram, products.coefficients)
        self.following.expect(step, record, recording, products)

    def _certify(self, recording: Recording, products: Products) -> None:
        found = self.check.judge(recording, products, self.made)
        if found is not None:
            self.rows.manifest(certificate=found.as_manifest())
            found.require()  # one that fails is not kept: the next step is checked again
            self.certificate = found

    def say(
        self, logps: Tensor, mask: Tensor | None, columns: Mapping[str, Tensor], vanishing: bool, **given: Any
    ) -> None:
        """What the loop says before the backward; see ``Probe.pairs``."""
        assert self.recording is not None
        self.recording.watch(logps, mask, vanishing or self.asks or not self.check.done)
        assert self.recording.logps is not None
        if self.following.of_changes and not given["predict"]:
            raise BadInput(
                "the optimizer's step is followed for the responses' own log-probabilities, and with predict=False the "
                "rows are others; write Probe(update=False, metric_every=0, metric='applied', split_momentum=False)"
            )
        self.given = Told.of(self.recording.logps, columns=columns, **given)
        if not self.check.done:
            self.check.prepare(self.recording)
            if self.check.skipped:
                self.rows.manifest(certificate={"skipped": self.check.skipped})

    def complete(self, loss_scale: float | Tensor | None, found: Mapping[str, Tensor]) -> None:
        """What was not known before the backward; see ``Probe.complete``."""
        if self.given is None or self.recording is None:
            return
        if (others := found.get("coefficients")) is not None:
            if not self.recording.ran:
                raise BadInput("coefficients add to those of the backward; call probe.complete once that has run")
            self.recording.coefficients = self.recording.coefficients + others.to(self.recording.coefficients)
        self.given = self.given.completed(loss_scale, {n: v for n, v in found.items() if n != "coefficients"})

    def one_pass(self, loss: Tensor) -> None:
        """The backward of the training, from the recorded uses; see ``Probe.one_pass``."""
        if self.recording is None or self.given is None:
            raise BadInput("probe.one_pass needs probe.pairs before it, in the same step")
        self.made = True
        self.recording.backward(loss)

    def norms(self, logps: Tensor) -> tuple[Tensor, Tensor]:
        """``(‖g_w‖, ‖g_l‖)``, ``[B]`` each, measured before the training backward; see ``Probe.measure``."""
        assert self.recording is not None
        entries = self.recording.measure().entries.sum(0).clamp(min=0).sqrt()
        return entries[:, 0].to(logps.device), entries[:, 1].to(logps.device)

    def metric_norms(self, logps: Tensor) -> tuple[Tensor, Tensor] | None:
        """The same in the metric of the optimizer's last step; see ``Probe.metric_norms``."""
        held = None if self.recording is None else self.recording.held()
        if held is None:
            raise BadInput("probe.metric_norms belongs between probe.measure and probe.backward, in the same step")
        squares = self.following.squares_in_last_metric(held)
        if squares is None:
            return None
        chosen, rejected = squares.sqrt().to(logps.device).chunk(2)
        return chosen, rejected

    def reweight(self, coefficients: Tensor, columns: Mapping[str, Tensor]) -> None:
        """The gradient ``Σ_i c_i g_i`` from what was measured; see ``Probe.backward``."""
        if self.recording is None or self.given is None:
            raise BadInput("probe.backward needs probe.measure before it, in the same step")
        self.made = True
        self.recording.reweight(coefficients)
        self.given = self.given.completed(None, columns)
