"""Models as folders in the Hugging Face layout: left by a run at a step, read as full models or as adapters.

No heavy import at the top: what a folder holds is told before torch is loaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dyn_probe.errors import BadInput, on_one_line

CONFIG, ADAPTER, STATE = "config.json", "adapter_config.json", "trainer_state.json"
BASE = "base"
"""Folder within an adapter folder that holds its base model, where that lies nowhere else (the built-in model)."""
_AT_STEP = re.compile(r"checkpoint-(\d+)")
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def is_model(folder: Path) -> bool:
    """Whether the folder holds a model of its own or adapters of another one."""
    return (folder / CONFIG).is_file() or is_adapter(folder)


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds adapters alone, as peft's ``save_pretrained`` leaves them."""
    return (folder / ADAPTER).is_file() and not (folder / CONFIG).is_file()


def adapter_base(folder: Path) -> str:
    """The base model of an adapter folder: a folder or a hub id, from its ``adapter_config.json``.

    A folder that is not where it was is also looked for inside the adapter folder, so that a run can be moved.

    Raises:
        BadInput: it is not named, or it is a folder that is not there.
    """
    try:
        told = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        base = told.get("base_model_name_or_path") if isinstance(told, dict) else None
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {folder / ADAPTER}: {on_one_line(error)}; wanted that of peft") from error
    if not isinstance(base, str) or not base.strip():
        raise BadInput(
            f"the adapter folder {folder} does not say which model its adapters belong to; write that model's folder "
            f"or hub id as base_model_name_or_path into {folder / ADAPTER}"
        )
    path = Path(base).expanduser()
    if path.is_dir():
        return str(path)
    for near in (folder / path, folder / path.name):
        if near.is_dir() and (near / CONFIG).is_file():
            return str(near)
    if path.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1:
        raise BadInput(
            f"the adapter folder {folder} needs its base model {base!r}, which is not a folder here; put the model "
            f"there, or write where it is as base_model_name_or_path into {folder / ADAPTER}"
        )
    return base


def training_step(folder: Path) -> tuple[int, str] | None:
    """The optimizer steps that the model in a folder was trained for, and what says so; None where nothing does.

    ``trainer_state.json`` counts, as transformers' Trainer and this package leave it, then a name ``checkpoint-STEP``.
    """
    try:
        told = json.loads((folder / STATE).read_text(encoding="utf-8"))
        step = told.get("global_step") if isinstance(told, dict) else None
    except (OSError, ValueError):
        step = None
    if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
        return step, STATE
    named = _AT_STEP.fullmatch(folder.resolve().name)
    return None if named is None else (int(named[1]), "name")


def checkpoints_in(folder: Path) -> list[Path]:
    """Its folders ``checkpoint-STEP`` that hold models, in order of step."""
    if not folder.is_dir():
        return []
    found = [one for one in folder.iterdir() if _AT_STEP.fullmatch(one.name) and is_model(one)]
    return sorted(found, key=lambda one: int(one.name.partition("-")[2]))


def save_model(
    folder: Path,
    step: int,
    model: Any,
    tokenizer: Any,
    weights: Mapping[str, Any] | None = None,
    base: Any = None,
) -> None:
    """Leave a model in ``folder``, as ``--model`` and transformers load it; what is there is replaced in one move.

    Args:
        step: optimizer steps that the model was trained for.
        model: a model of transformers, or adapters of peft on one, which are saved alone.
        weights: its whole state, where its own parameters are split over processes.
        base: a model that adapters are of and that no folder holds yet; it is saved within.

    Raises:
        OSError: the system refuses to write it; what was there stays.
    """
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with _system_errors(), quiet():
            _save_weights(part, folder, model, weights, base)
            for place in (part, part / BASE):
                if place.is_dir():
                    _save_tokenizer(place, tokenizer)
        (part / STATE).write_text(json.dumps({"global_step": step}) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _save_weights(part: Path, folder: Path, model: Any, weights: Mapping[str, Any] | None, base: Any) -> None:
    more = {} if weights is None else {"state_dict": _tied(model, weights)}
    adapters = getattr(model, "peft_config", None)
    if adapters is None:
        model.save_pretrained(part, **more)
        return
    if base is not None:
        base.save_pretrained(part / BASE)
    for config in adapters.values():
        before = config.base_model_name_or_path
        config.base_model_name_or_path = _named(before) if base is None else str(folder.absolute() / BASE)
    # "auto" looks the base up on the hub; its vocabulary is never changed here.
    targeted = any(name in str(config.target_modules) for config in adapters.values() for name in ("embed", "wte"))
    model.save_pretrained(part, save_embedding_layers=targeted, **more)


def _tied(model: Any, weights: Mapping[str, Any]) -> dict[str, Any]:
    """The same with one tensor for all names of a parameter, where gathering made several."""
    found: dict[str, Any] = dict(weights)
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        same = first.setdefault(id(parameter), name)
        if name in found and same in found:
            found[name] = found[same]
    return found


def _named(base: str | None) -> str | None:
    """The base as it is found from any folder: a path becomes absolute."""
    return str(Path(base).absolute()) if base and Path(base).is_dir() else base


def _save_tokenizer(part: Path, tokenizer: Any) -> None:
    """The tokenizer with the length limit that it came with, which ``load_model`` lifts."""
    lifted = tokenizer.model_max_length
    tokenizer.model_max_length = tokenizer.init_kwargs.get("model_max_length") or lifted
    try:
        tokenizer.save_pretrained(part)
    finally:
        tokenizer.model_max_length = lifted


@contextmanager
def _system_errors() -> Iterator[None]:
    """What safetensors cannot write as the OSError that it is."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if number := _SYSTEM_ERROR.search(str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise


@contextmanager
def quiet() -> Iterator[None]:
    """No bars of transformers among the run's own lines."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
