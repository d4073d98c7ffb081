"""Two trainings by ``DPOTrainer`` in one of two processes: without the recorder, and with it."""

from __future__ import annotations

import sys
from pathlib import Path

import attach_runs as runs
import torch


def main() -> None:
    """``attach_processes.py FOLDER [OPTION=VALUE …]``"""
    folder = Path(sys.argv[1])
    options = {name: eval(value) for name, value in (one.split("=", 1) for one in sys.argv[2:])}
    for how in (runs.plain, runs.recorded):
        trainer = how(folder, **options)
        if trainer.args.process_index == 0:
            model = trainer.accelerator.unwrap_model(trainer.model)
            found = {"weights": model.state_dict(), "logged": runs.logged(trainer)}
            torch.save(found, folder / f"{how.__name__}.pt")


if __name__ == "__main__":
    main()
