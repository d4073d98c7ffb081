"""What a probe answers about itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dyn_probe.engine.certificate import Certificate
from dyn_probe.engine.routes import rates
from dyn_probe.engine.shield import Shield
from dyn_probe.probe.batch_in_progress import BatchInProgress
from dyn_probe.probe.budget import Thinned
from dyn_probe.probe.evaluation import Evaluation
from dyn_probe.probe.following import Following
from dyn_probe.probe.kept import Kept
from dyn_probe.probe.schedule import Schedule


class Recorder(Kept):
    """A probe without its verbs."""

    optimizer: torch.optim.Optimizer | None
    schedule: Schedule
    _batch: BatchInProgress
    _evaluation: Evaluation
    _following: Following
    _shield: Shield

    @property
    def recording(self) -> bool:
        """Whether a step is being recorded right now."""
        return self._batch.recording is not None

    @property
    def certificate(self) -> Certificate | None:
        """What the check of the first recorded step found; None before it."""
        return self._batch.certificate

    @property
    def failure(self) -> Exception | None:
        """The first error in hooks that are ``shielded``; None where there was none."""
        return self._shield.failure

    def records(self, step: int) -> bool:
        """Whether the schedule records this step."""
        return self.schedule.records(step)

    @property
    def thinned(self) -> bool:
        """Whether steps are recorded as a budget allows; what is said of the others' pairs is kept too."""
        return isinstance(self.schedule, Thinned)

    def realises(self, step: int, every: int) -> bool:
        """Whether the schedule has this step's realised change measured, if that is wanted at every so-many-th step."""
        return self.schedule.realises(step, every)

    @property
    def momentum(self) -> Mapping[str, list[Tensor]]:
        """Parameter → momentum of all chosen and of all rejected gradients (``split_momentum``): keep it with a
        checkpoint of the optimizer, and set it again before the first step of a run that goes on."""
        return self._following.momentum

    @momentum.setter
    def momentum(self, state: Mapping[str, list[Tensor]]) -> None:
        self._following.momentum = state  # type: ignore[assignment]

    @property
    def draws_random_numbers(self) -> bool:
        """Whether a recorded forward of the step in progress drew random numbers (dropout). Its log-probabilities are
        then no baseline for the realised change: take ``probe.evaluate(batch)`` before ``optimizer.step()``."""
        return self._evaluation.random

    def _flush(self) -> None:
        self._begin(-1)
        self._rows.flush()

    def _begin(self, step: int) -> None:
        self._following.drop()
        self._rows.begin(step)
        self._evaluation.random = False

    def _finish(self) -> None:
        if rates.USED:
            self._rows.manifest(rates=rates.as_manifest())
        if isinstance(self.schedule, Thinned):
            self._rows.manifest(thinned=self.schedule.facts)
        try:
            super()._finish()
        finally:
            self._following.close()

    def _rate(self, learning_rate: float | None) -> float | None:
        if learning_rate is not None or self.optimizer is None:
            return learning_rate
        return float(self.optimizer.param_groups[0]["lr"])
