"""Checkpoints: everything that a resumed run needs to continue as if it had never stopped, where nothing is unpickled;
and beside them the models that a run leaves for others to load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dyn_probe.data.model_folders import checkpoints_in, is_model, save_model
from dyn_probe.errors import BadInput
from dyn_probe.trace.failures import naming

FOLDER = "checkpoints"
MODEL = "model"
"""Folder of the trained model."""


def save_checkpoint(run: Path, step: int, model: dict[str, Any], optimizer: dict[str, Any], **more: Any) -> Path:
    """Write ``RUN/checkpoints/step-N.pt`` in one move; older ones are removed. ``step`` steps are done.

    Args:
        model, optimizer: their states.
        more: further state of tensors, numbers, texts, lists and dicts (reference table, token mask).

    Raises:
        WriteFailed: the system refuses to write it; the older checkpoint stays.
    """
    folder = run / FOLDER
    path = folder / f"step-{step}.pt"
    state = {
        "step": step,
        "model": model,
        "optimizer": optimizer,
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        **more,
    }
    with naming(path):
        folder.mkdir(exist_ok=True)
        _save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    for other in folder.glob("step-*.pt"):
        if other != path:
            other.unlink()
    return path


def _save(state: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        refused = error.__context__ if isinstance(error, RuntimeError) else error
        raise refused if isinstance(refused, OSError) else error from None  # torch hides it behind a RuntimeError


def newest_checkpoint(run: Path) -> dict[str, Any]:
    """The state of the newest checkpoint of a run, loaded without executing code from it.

    Raises:
        BadInput: the run has none, or it cannot be read.
    """
    found = sorted((run / FOLDER).glob("step-*.pt"), key=lambda p: int(p.stem.partition("-")[2]))
    if not found:
        raise BadInput(f"{run} has no checkpoint to resume from; checkpoints are saved by --checkpoint-every N")
    try:
        return torch.load(found[-1], map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises several unrelated types
        raise BadInput(f"cannot read the checkpoint {found[-1].name} of {run}: {str(error).splitlines()[0]}") from error


def restore(state: dict[str, Any], model: nn.Module | None, optimizer: torch.optim.Optimizer | None) -> int:
    """Restore a checkpoint's state, random numbers included; returns the number of completed steps.

    Args:
        model, optimizer: None where their state is restored elsewhere.
    """
    if model is not None:
        model.load_state_dict(state["model"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return int(state["step"])


def keep_model(run: Path, step: int, most: int | None, *saved: Any) -> Path:
    """Leave the model at ``step`` in ``RUN/checkpoints/checkpoint-STEP``; returns the folder.

    Args:
        most: how many such folders stay, the newest; None: all.
        saved: model, tokenizer and more, as for ``save_model``.

    Raises:
        WriteFailed: the system refuses to write it; the older ones stay.
    """
    folder = run / FOLDER / f"checkpoint-{step}"
    with naming(folder):
        save_model(folder, step, *saved)
    older = [one for one in checkpoints_in(run / FOLDER) if one != folder]
    for one in [] if most is None else older[: max(0, len(older) + 1 - most)]:
        shutil.rmtree(one)
    return folder


def leave_model(run: Path, step: int, *saved: Any) -> Path:
    """Leave the trained model in ``RUN/model``; returns the folder.

    Args:
        saved: model, tokenizer and more, as for ``save_model``.

    Raises:
        WriteFailed: the system refuses to write it.
    """
    folder = run / MODEL
    with naming(folder):
        save_model(folder, step, *saved)
    return folder


def remove_models(run: Path) -> None:
    """Delete a run's checkpoints, with the folder, and the model that it left."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    if is_model(run / MODEL):
        shutil.rmtree(run / MODEL)
