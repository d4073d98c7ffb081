"""A user's own training script: ``attach_script.py FOLDER [how it ends]``, or ``python -m attach_script``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import attach_runs as runs


def in_step_one(folder: Path, how: str) -> None:
    """What happens inside the second training step."""
    if how == "crash":
        raise ValueError("the user's own error")
    if how == "vanish":
        os._exit(7)
    if how == "wait":
        (folder / "waiting").touch()
        time.sleep(60)


def main() -> None:
    """Train, and end as asked; ``twice``: a second trainer in the same process."""
    folder, how = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    trainer = runs.trainer_of(folder)
    original = trainer._compute_loss

    def computed(*args: object) -> object:
        if trainer.state.global_step == 1:
            in_step_one(folder, how)
        return original(*args)

    trainer._compute_loss = computed
    trainer.train()
    if how == "twice":
        runs.trainer_of(folder, max_steps=1).train()
    if how == "exit":
        os._exit(7)


if __name__ == "__main__":
    main()
