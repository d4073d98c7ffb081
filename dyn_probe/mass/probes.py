"""The probe set: prompts with responses of several kinds, fixed through a run and saved with it. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dyn_probe.errors import BadInput
from dyn_probe.mass.probe_kinds import KINDS

UNFINISHED = "unfinished"
"""Field of a probe file: the kinds of the line that were cut off."""


ABSENT = "in none"
"""Beginning of the reason where no line of a file has the kind."""


@dataclass(frozen=True)
class SkippedResponse:
    """One response that is not measured: where it stood (file and line, or record), its kind, and why."""

    source: str
    kind: str
    reason: str


@dataclass(frozen=True)
class ProbePrompt:
    """One prompt and its responses, kind → text, with the place it came from.

    ``unfinished`` names the kinds that were cut: they are measured without an end-of-sequence token.
    """

    prompt: str
    responses: Mapping[str, str]
    source: str = ""
    unfinished: tuple[str, ...] = ()

    @property
    def prompt_id(self) -> str:
        """16 hex digits that name the prompt by its text."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ProbeSet:
    """Prompts × response kinds, and what had to be left out of them.

    Args:
        built: kinds that were made from the other responses, because the file has none of them.

    Raises:
        BadInput: no response remains; the message says what was skipped.
    """

    prompts: tuple[ProbePrompt, ...]
    skipped: tuple[SkippedResponse, ...] = ()
    built: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not any(prompt.responses for prompt in self.prompts):
            raise BadInput(
                f"a probe set needs at least one prompt with a response; none remains. {listed(self.skipped)}"
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds that occur, in the order of the kind table, then any others by name."""
        found = {kind for prompt in self.prompts for kind in prompt.responses}
        return (*(kind for kind in KINDS if kind in found), *sorted(found - set(KINDS)))

    def __len__(self) -> int:
        return sum(len(prompt.responses) for prompt in self.prompts)

    def with_kind(self, kind: str, texts: Mapping[str, str], skipped: tuple[SkippedResponse, ...] = ()) -> ProbeSet:
        """The same set with ``kind`` set to ``texts`` (prompt_id → response) on the prompts named there."""
        prompts = tuple(
            replace(prompt, responses={**prompt.responses, kind: texts[prompt.prompt_id]})
            if prompt.prompt_id in texts
            else prompt
            for prompt in self.prompts
        )
        return replace(self, prompts=prompts, skipped=(*self.skipped, *skipped))

    def save(self, path: str | Path, force: bool = False) -> Path:
        """Write one JSON object per prompt; refuse to replace a different file unless ``force``."""
        path = Path(path)
        text = "".join(json.dumps(_fields(prompt), ensure_ascii=False) + "\n" for prompt in self.prompts)
        if path.exists() and not force and path.read_text(encoding="utf-8") != text:
            raise BadInput(f"{path} holds a different probe set; choose another path, or pass force=True")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
        return path


def _fields(prompt: ProbePrompt) -> dict[str, object]:
    """A prompt as the fields of its line."""
    cut = {UNFINISHED: list(prompt.unfinished)} if prompt.unfinished else {}
    return {"prompt": prompt.prompt, **prompt.responses, **cut}


def listed(skipped: tuple[SkippedResponse, ...], most: int = 8) -> str:
    """The first few skipped responses as one line of text."""
    lines = [f"{s.source} [{s.kind}]: {s.reason}" for s in skipped[:most]]
    more = [f"and {len(skipped) - most} more"] if len(skipped) > most else []
    return "Skipped: " + "; ".join([*lines, *more]) if lines else "Nothing was skipped; the set was empty"
