"""The cells of a grid: methods × settings × seeds, each the options of one run. No heavy import."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dyn_probe.errors import BadInput, TraceError
from dyn_probe.objectives.options import parse
from dyn_probe.trace.manifest import read_manifest, typed
from dyn_probe.train.options.config import OPTIONS, RunConfig

OF_TRAINING = (
    "lr", "steps", "batch_size", "gradient_accumulation", "optimizer", "weight_decay", "schedule", "warmup_steps",
    "max_grad_norm",
)  # fmt: skip
"""Fields of ``RunConfig`` that a method may set for itself, beside the hyper-parameters of its objective. The model,
the data and the warm-up are those of the grid, so that all cells of a seed start from one policy."""
NOT_COMPARED = ("out", "force", "resume", "device", "strict", "trust_remote_code")
"""Fields in which a cell that was recorded earlier may differ from the one that is asked for."""


class Cell(NamedTuple):
    """One run of a grid.

    Args:
        method: as it was named, OBJECTIVE or OBJECTIVE:KEY=VALUE,…+SHAPING.
        setting: what was varied beside it, KEY=VALUE,…; empty where nothing is.
    """

    method: str
    seed: int
    setting: str = ""

    @property
    def name(self) -> str:
        """For people, and sanitised for a folder."""
        return f"{self.method} ({self.setting})" if self.setting else self.method

    @property
    def folder(self) -> str:
        """Name of its folder."""
        text = "-".join(part for part in (self.method, self.setting) if part)
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', text)}-seed{self.seed}"


def parts(method: str) -> list[str]:
    """Objective and shapings of ``OBJECTIVE+SHAPING+…``, each with its options."""
    return re.split(r"\+(?=[a-z])", method)


def settings_of(vary: Sequence[str]) -> list[dict[str, str]]:
    """Every combination of ``KEY=VALUE,VALUE,…``, in the order of the values; one empty setting where nothing varies.

    Raises:
        BadInput: a text of another form, a key twice, or a value twice.
    """
    axes: dict[str, list[str]] = {}
    for text in vary:
        key, _, listed = (piece.strip() for piece in text.partition("="))
        values = [value.strip() for value in listed.split(",") if value.strip()]
        if not (key and values) or key in axes or len(set(values)) < len(values):
            raise BadInput(f"--vary: wanted KEY=VALUE,VALUE,… with each key and each value once; got {text!r}")
        axes[key] = values
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def cell_config(base: RunConfig, out: Path, cell: Cell, setting: dict[str, str]) -> RunConfig:
    """The run of a cell: ``base`` with the method's own options and those of the setting.

    Raises:
        BadInput: the setting sets what the method sets already, or a value does not fit.
    """
    objective, *shapings = parts(cell.method)
    name, given = parse(objective)
    twice = [key for key in setting if key in given]
    if twice:
        raise BadInput(f"{cell.method} sets {', '.join(twice)} itself, and --vary varies it: leave out one of them")
    both: dict[str, Any] = {**given, **setting}
    training = {key: value for key, value in both.items() if _field(key) in OF_TRAINING}
    hyper = ",".join(f"{key}={value}" for key, value in both.items() if key not in training)
    options: dict[str, Any] = {_field(key): value for key, value in training.items()}
    text = f"{name}:{hyper}" if hyper else name
    return replace(base, out=str(out / cell.folder), objective=text, shaping=tuple(shapings), seed=cell.seed, **options)


def _field(key: str) -> str:
    return key.replace("-", "_")


def recorded(config: RunConfig) -> bool:
    """Whether the cell's run was recorded to its end, with these options.

    Raises:
        BadInput: it was recorded with other options; all of them are listed.
    """
    try:
        about = typed(read_manifest(config.folder))
    except TraceError:
        return False
    if about.status != "closed" or about.held_out is None:
        return False
    wanted = config.with_model_defaults(about.config.get("every") == "auto")
    old = RunConfig(**{name: value for name, value in about.config.items() if name in OPTIONS} | {"force": False})
    other = [n for n in OPTIONS if n not in NOT_COMPARED and getattr(old, n) != getattr(wanted, n)]
    if other:
        said = "; ".join(f"{OPTIONS[n].name} was {getattr(old, n)!r}, now {getattr(wanted, n)!r}" for n in other)
        raise BadInput(f"{config.folder} was recorded with other options: {said}; write --force to train the grid anew")
    return True
