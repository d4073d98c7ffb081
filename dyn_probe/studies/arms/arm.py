"""One arm of a study: a method with one seed, and what tells it from the others. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyn_probe.errors import BadInput, unknown
from dyn_probe.train.options.config import RunConfig

GENERATED = "generated"
"""Name of data that the project makes itself."""
BUILT_IN = "built-in"
_ELSEWHERE = ("out", "force", "resume", "device")
"""Options that do not change what is trained."""


class NoStart(BadInput):
    """What an arm begins from did not come about: the study goes on without the arm, and says so."""


def nothing() -> None:
    """Nothing has to be made before the arm."""


@dataclass(frozen=True)
class Arm:
    """A run of a study.

    Args:
        study, name, seed: which one; ``key`` is what ``--arm`` takes.
        config: how it is trained; ``config.out`` is its folder.
        model, data: names that the tables group by (``built-in`` or the folder's name; ``generated`` or the file's).
        command: trains this arm alone.
        begin: makes the model that it starts from, where that is not there yet.
        minutes: what such an arm took where it was measured.
    """

    study: str
    name: str
    seed: int
    config: RunConfig
    model: str = BUILT_IN
    data: str = GENERATED
    command: str = ""
    begin: Callable[[], object] = nothing
    minutes: float = 0.5

    @property
    def key(self) -> str:
        """Its name and seed as a folder's name."""
        return arm_key(self.name, self.seed)

    @property
    def folder(self) -> Path:
        """Folder of its trace."""
        return Path(self.config.out)

    @property
    def settings(self) -> dict[str, Any]:
        """The options that differ from their defaults, without folders."""
        usual = RunConfig().as_dict()
        own = {name: value for name, value in self.config.as_dict().items() if value != usual[name]}
        own |= {"model": self.model} if "model" in own else {}
        return {name: bare(value) for name, value in own.items() if name not in _ELSEWHERE}


def arm_key(name: str, seed: int) -> str:
    """``Gate-DPO seq``, 0 → ``gate-dpo-seq-0``."""
    return f"{re.sub(r'[^a-z0-9.=_-]+', '-', name.replace('★', '-star').replace(',', '').lower()).strip('-')}-{seed}"


def bare(value: Any) -> Any:
    """A text without the folders of the files that it names."""
    if not isinstance(value, str):
        return value
    kind, at, file = value.rpartition("@")
    path = Path(file)
    return f"{kind}{at}{path.name}" if path.exists() or path.is_absolute() else value


def chosen_arms(arms: Sequence[Arm], key: str | None) -> list[Arm]:
    """All of them, or the one that is named.

    Raises:
        BadInput: there is none of that name.
    """
    if key is None:
        return list(arms)
    found = [arm for arm in arms if arm.key == key]
    if not found:
        raise BadInput(unknown("arm", key, [arm.key for arm in arms]))
    return found


def command_of(study: str, options: Sequence[tuple[str, Any]], key: str) -> str:
    """What trains one arm again, with the files' names but not their folders where these are absolute."""
    words = ["dyn-probe", "reproduce", study]
    for name, value in options:
        if value not in (None, "", False):
            text = str(value)
            words += [name] if value is True else [name, bare(text) if "/" in text and _absolute(text) else text]
    return " ".join([*words, "--arm", key])


def _absolute(text: str) -> bool:
    return Path(text.rpartition("@")[2]).is_absolute()
