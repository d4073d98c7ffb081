"""A user's own training script: ``attach_script.py FOLDER [how it ends]``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import attach_runs as runs


def main() -> None:
    """Train, and end as asked."""
    folder, how = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    trainer = runs.trainer_of(folder)
    if how == "crash":
        original = trainer._compute_loss

        def fail(*args: object) -> object:
            if trainer.state.global_step == 1:
                raise ValueError("the user's own error")
            return original(*args)

        trainer._compute_loss = fail
    trainer.train()
    if how == "exit":
        os._exit(7)


if __name__ == "__main__":
    main()
