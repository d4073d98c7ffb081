"""``ProbeCallback``: one of TRL's trainers on pairs with the recorder on, by one line.

::

    from dyn_probe.attach.trl import ProbeCallback

    trainer = DPOTrainer(..., callbacks=[ProbeCallback("runs/mine")])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.attach.attachment import Attachment
from dyn_probe.attach.finding import calling_trainer
from dyn_probe.attach.refusals import newer_than_tested, refusal
from dyn_probe.attach.trainer_kinds import kind_of
from dyn_probe.attach.user_lines import say


class ProbeCallback(TrainerCallback):
    """Records every pair that ``DPOTrainer``, ``CPOTrainer``, ``ORPOTrainer`` or ``KTOTrainer`` trains on; the training
    stays bitwise the same.

    Args:
        out: folder of the trace.
        options: as in ``AttachOptions``: ``every``, ``gram_every``, ``metric_every``, ``realised_every``,
            ``split_momentum``, ``update``, ``layers``, ``text``, ``final_pairs``, ``strict``, ``force``.
    """

    def __init__(self, out: str | Path = "runs/trl", **options: Any) -> None:
        self.options = AttachOptions.of({"out": str(out), **options})
        self.attachment: Attachment | None = None

    @staticmethod
    def with_options(options: AttachOptions) -> ProbeCallback:
        """The callback of given options."""
        return ProbeCallback(**asdict(options))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = calling_trainer()
        if trainer is None:
            return
        callbacks = trainer.callback_handler.callbacks
        callbacks.remove(self)
        callbacks.insert(0, self)  # before those that report logs
        try:
            why, kind = refusal(trainer), kind_of(trainer)
            if why or kind is None:
                say(f"not recorded, the training continues: {why}")
                return
            if note := newer_than_tested():
                say(note)
            self.attachment = Attachment(trainer, kind, self.options)
        except Exception as error:
            if self.options.strict:
                raise
            say(f"not recorded, the training continues: {error}")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tell(lambda attachment: attachment.before_step())

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tell(lambda attachment: attachment.after_step())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tell(lambda attachment: attachment.log_step())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs is not None:
            self._tell(lambda attachment: attachment.log(logs))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tell(lambda attachment: attachment.record_final())
        if self.attachment is not None:
            self.attachment.end()
            say(f"recorded. {self.attachment.next_step}")
        self.attachment = None

    def _tell(self, event: Callable[[Attachment], None]) -> None:
        """Hand an event on, as long as there is a recording."""
        if self.attachment is None:
            return
        self.attachment.guard(event)(self.attachment)
        self.attachment.stop_if_failed()
        if self.attachment.over:
            self.attachment = None
