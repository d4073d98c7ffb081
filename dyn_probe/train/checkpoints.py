"""Checkpoints: everything that a resumed run needs to continue as if it had never stopped, where nothing is unpickled;
and beside them the models that a run leaves for others to load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import nn

from dyn_probe.data.model_folders import checkpoints_in, is_model, save_model
from dyn_probe.errors import BadInput, on_one_line
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
        BadInput: the run has none, it cannot be read or is damaged, or it is no checkpoint of a run.
    """
    found = sorted((run / FOLDER).glob("step-[0-9]*.pt"), key=lambda path: (len(path.name), path.name))
    if not found:
        raise BadInput(f"{run} has no checkpoint to resume from; checkpoints are saved by --checkpoint-every N")
    place = f"the checkpoint {found[-1].name} of {run}"
    try:
        with ZipFile(found[-1]) as file:  # torch itself does not read the checksums that it writes
            damaged = file.testzip()
        state: Any = None if damaged else torch.load(found[-1], map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises several unrelated types
        raise BadInput(f"cannot read {place}: {on_one_line(error)}") from error
    if damaged:
        raise BadInput(f"{place} is damaged: the checksum of its part {on_one_line(damaged)} is another")
    wrong = [name for name, fits in CONTENT.items() if not (isinstance(state, dict) and name in state)]
    wrong = wrong or [name for name, fits in CONTENT.items() if not fits(state[name])]
    if wrong:
        raise BadInput(f"{place} is not one of dyn-probe: its {', '.join(wrong)} are missing or of another type")
    return state


def _is_bytes(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.uint8


def _is_named(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


CONTENT: dict[str, Callable[[Any], bool]] = {
    "step": lambda value: type(value) is int and 0 <= value < 2**63,
    "model": lambda value: _is_named(value) and all(isinstance(one, torch.Tensor) for one in value.values()),
    "optimizer": lambda value: _is_named(value) and {"state", "param_groups"} <= set(value),
    "random": _is_bytes,
    "random_cuda": lambda value: isinstance(value, list) and all(map(_is_bytes, value)),
}
"""What every checkpoint has, and whether a value may be it."""


@contextmanager
def fitting() -> Iterator[None]:
    """Around what takes a checkpoint's state in: one of another model or optimizer is refused in one sentence.

    Raises:
        BadInput: in place of what torch raises.
    """
    try:
        yield
    except BadInput:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise BadInput(
            f"the checkpoint does not fit the run that is to be resumed: {on_one_line(error)}; resume with the "
            "model and the options that it was saved with"
        ) from error


def restore(state: dict[str, Any], model: nn.Module | None, optimizer: torch.optim.Optimizer | None) -> int:
    """Restore a checkpoint's state, random numbers included; returns the number of completed steps.

    Args:
        model, optimizer: None where their state is restored elsewhere.

    Raises:
        BadInput: the state is that of another model or optimizer.
    """
    with fitting():
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
