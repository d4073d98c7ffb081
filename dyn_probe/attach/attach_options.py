"""What a recorded trainer may be asked for; the same by callback and by command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dyn_probe.errors import BadInput, did_you_mean


@dataclass(frozen=True)
class AttachOptions:
    """Options of a recorded trainer.

    Args:
        out: folder of the trace; where it is taken, ``-2`` and so on is put behind its name.
        every: record every N-th step; "auto": as often as ``budget`` allows, in one process; None: "auto" on a GPU in
            one process, if neither ``split_momentum``, ``update`` nor another metric is asked for, else 1.
        budget: largest share of the training's time that records may take, with ``every="auto"``.
        gram_every: full Gram of the batch every N steps; 0 never.
        metric_every: take the optimizer's step apart every N steps; 0 never.
        metric: "applied"; "previous": also own parts, past and decay in the metric of the step before, at every
            recorded step that is not taken apart, in one process.
        realised_every: evaluate the recorded pairs again after the update every N steps; 0 never.
        split_momentum: tell all chosen from all rejected gradients over all steps, which the fix table needs; None:
            where few parameters are trained (LoRA), in one process, and the optimizer's steps are taken apart.
        update: the first-order change along the optimizer's own step at every recorded step.
        layers: also record every layer.
        text: also record the pairs' texts.
        final_pairs: evaluate so many of the pairs at the end.
        strict: let errors of the recorder end the training.
        force: replace an existing trace in ``out``.
    """

    out: str = "runs/trl"
    every: int | str | None = None
    budget: float = 0.05
    gram_every: int = 10
    metric_every: int = 10
    metric: str = "applied"
    realised_every: int = 10
    split_momentum: bool | None = None
    update: bool = False
    layers: bool = True
    text: bool = True
    final_pairs: int = 200
    strict: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        wrong = [
            f"{name} >= {least} (got {value!r})"
            for name, value in asdict(self).items()
            if type(value) is int and value < (least := int(name == "every"))
        ]
        if self.every not in ("auto", None) and type(self.every) is not int:
            wrong.append(f"every as a number of steps, or auto (got {self.every!r})")
        if self.every == "auto" and self.split_momentum:
            wrong.append("every=auto without split_momentum, which follows every step")
        if self.metric not in ("applied", "previous"):
            wrong.append(f"metric=applied or metric=previous (got {self.metric!r})")
        if not isinstance(self.budget, (int, float)) or not 0 < self.budget <= 1:
            wrong.append(f"budget above 0 and of at most 1, as 0.05 for 5% (got {self.budget!r})")
        if wrong:
            raise BadInput(f"wanted {', '.join(wrong)}")

    def on(self, device: str, processes: int) -> AttachOptions:
        """The same with ``every`` as a training on such a device (its type) in so many processes has it.

        Raises:
            BadInput: "auto", or the previous metric, in several processes.
        """
        if self.every == "auto" and processes > 1:
            raise BadInput(
                "every=auto decides by measured time, on which processes would not agree; write a number of steps"
            )
        if self.metric == "previous" and processes > 1:
            raise BadInput("metric=previous is for one process: with several, gradients are averaged; leave it out")
        if self.every is not None:
            return self
        thinned = (
            device == "cuda"
            and processes == 1
            and not (self.split_momentum or self.update or self.metric == "previous")
        )
        return replace(self, every="auto" if thinned else 1)

    @staticmethod
    def of(given: Mapping[str, Any]) -> AttachOptions:
        """The options of these names.

        Raises:
            BadInput: names that there are not, or values out of range.
        """
        names = [field.name for field in fields(AttachOptions)]
        if unknown := [name for name in given if name not in names]:
            listed = ", ".join(f"{name}{did_you_mean(name, names)}" for name in unknown)
            raise BadInput(f"a recorded trainer has no option {listed}; it has: {', '.join(names)}")
        return AttachOptions(**given)

    def as_text(self) -> str:
        """For an environment variable."""
        return json.dumps(asdict(self))

    @staticmethod
    def of_text(text: str) -> AttachOptions:
        """What ``as_text`` gave."""
        return AttachOptions.of(json.loads(text))
