"""``CHECKPOINT…`` of ``dyn-probe scan``: the models that these stand for, in the order of their training steps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dyn_probe.data.model_folders import checkpoints_in, is_adapter, is_model, training_step
from dyn_probe.data.names import check_model
from dyn_probe.errors import BadInput

OF_SCAN = (
    "out", "data", "objective", "hyper", "beta", "max_pairs", "columns", "strict_data", "max_length", "truncation",
    "batch_size", "device", "dtype", "trust_remote_code", "strict", "force",
)  # fmt: skip
"""Fields of ``RunConfig`` that are also options of a scan."""
WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Checkpoint:
    """A model that is scanned.

    Args:
        model: as ``--model`` takes it; a folder by its absolute path.
        step: its step in the trace.
        step_from: what says so: ``trainer_state.json``, ``name`` (``checkpoint-STEP``) or ``position`` (its place among
            the checkpoints, from 0).
        weights: digest of its weights; empty where they are in no folder.
        done: whether all pairs have been measured at it.
    """

    model: str
    step: int
    step_from: str
    weights: str
    done: bool = False


def find_checkpoints(names: Sequence[str]) -> list[Checkpoint]:
    """The models that ``names`` stand for, in order of step.

    Args:
        names: models as ``--model`` takes them, and folders that hold ``checkpoint-STEP`` (of a run with
            ``--keep-checkpoints``, of transformers' Trainer), which stand for these.

    Raises:
        BadInput: one is neither, two have the same step, or adapters and full models are mixed.
    """
    places = list(dict.fromkeys(place for name in names for place in _expanded(name)))
    found = []
    for position, place in enumerate(places):
        step, source = training_step(Path(place)) or (position, "position")
        found.append(Checkpoint(place, step, source, weights_digest(place)))
    refuse_mixed(found)
    return sorted(found, key=lambda one: one.step)


def refuse_mixed(found: Iterable[Checkpoint]) -> None:
    """BadInput where checkpoints cannot stand in one trace: one step twice, or other weights that are trained."""
    at: dict[int, Checkpoint] = {}
    kinds: dict[bool, Checkpoint] = {}
    for one in found:
        other = at.setdefault(one.step, one)
        if other is not one:
            raise BadInput(
                f"{other.model} (step by {other.step_from}) and {one.model} (step by {one.step_from}) are both at step "
                f"{one.step}, and a trace has one model at a step; scan them into two traces, with --out"
            )
        kinds.setdefault(is_adapter(Path(one.model)), one)
    if len(kinds) == 2:
        raise BadInput(
            f"{kinds[True].model} holds adapters and {kinds[False].model} a full model: gradients of adapters alone "
            "cannot be compared with those of all weights; scan them into two traces, or name the full model as "
            "--reference"
        )


def _expanded(name: str) -> list[str]:
    """The models that a name stands for: itself, or the checkpoints in its folder."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        check_model(name)
        return [name]
    found = checkpoints_in(folder) or checkpoints_in(folder / "checkpoints")
    end = folder / "model"
    if is_model(folder):
        found = found or [folder]
    elif is_model(end) and _step(end) not in map(_step, found):
        found.append(end)
    if not found:
        raise BadInput(
            f"the folder {name} holds no model and no checkpoint-STEP; wanted a "
            "folder of save_pretrained, or of a run recorded with --checkpoint-every N --keep-checkpoints all"
        )
    for one in found:
        check_model(str(one))
    return [os.path.abspath(one) for one in found]


def _step(folder: Path) -> int | None:
    return (training_step(folder) or (None,))[0]


def weights_digest(model: str) -> str:
    """What distinguishes the weights in a folder from others: a digest of their files."""
    folder = Path(model).expanduser()
    files = sorted(one for one in folder.glob("*") if one.suffix in WEIGHTS) if folder.is_dir() else []
    whole = [f"{file.name}:{_digest(file, file.stat().st_size, file.stat().st_mtime_ns)}" for file in files]
    return hashlib.sha256("\n".join(whole).encode()).hexdigest()[:16] if files else ""


@cache
def _digest(file: Path, size: int, written: int) -> str:
    """A file's digest, read once as long as the file stays as it is."""
    with file.open("rb") as read:
        return hashlib.file_digest(read, "sha256").hexdigest()
