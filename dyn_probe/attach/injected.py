"""In the processes of a recorded command: finds the preference trainer, and puts the recorder into it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerCallback

from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.attach.command import OPTIONS, SEEN
from dyn_probe.attach.finding import calling_trainer
from dyn_probe.attach.trainer_kinds import is_preference_trainer
from dyn_probe.attach.user_lines import say


class FindTrainer(TrainerCallback):
    """In every trainer of the process; a preference trainer that has no recorder yet is given one."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = calling_trainer()
        if trainer is None or not is_preference_trainer(trainer):
            return
        with suppress(OSError, KeyError):
            Path(os.environ[SEEN]).touch()
        try:
            from dyn_probe.attach.trl import ProbeCallback

            own = [one for one in trainer.callback_handler.callbacks if isinstance(one, ProbeCallback)]
            if not own:  # a callback that is added while callbacks are called is called as well
                trainer.add_callback(ProbeCallback.with_options(AttachOptions.of_text(os.environ[OPTIONS])))
        except Exception as error:
            say(f"not recorded, the training continues: {error}")
