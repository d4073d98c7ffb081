"""Reading a probe file: JSON lines with a prompt and one field per response kind. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dyn_probe.errors import BadInput
from dyn_probe.mass.kinds import IGNORED_FIELDS, KINDS
from dyn_probe.mass.probes import ProbePrompt, ProbeSet, SkippedResponse


def read_probe_set(path: str | Path, *, kinds: Sequence[str] | None = None, prompts: int | None = None) -> ProbeSet:
    """The probe set in a JSON-lines file; what cannot be used is listed by line and kind in ``.skipped``.

    Args:
        path: one object per line with ``prompt`` and response kinds as fields.
        kinds: fields to read; default: every kind of the kind table. A field outside the table, such as
            ``chosen_selfr`` of the published files, is measured only when it is named here.
        prompts: read at most this many prompts, in file order.

    Raises:
        BadInput: the file cannot be read, or nothing in it can be used.
    """
    path = Path(path)
    wanted = tuple(KINDS) if kinds is None else tuple(kinds)
    found: dict[str, ProbePrompt] = {}
    skipped: list[SkippedResponse] = []
    for source, row in _objects(path, skipped):
        if prompts is not None and len(found) >= prompts:
            break
        prompt = row.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            skipped.append(SkippedResponse(source, "*", f"prompt must be non-empty text, got {_shown(prompt)}"))
        elif prompt in found:
            skipped.append(SkippedResponse(source, "*", f"the same prompt as {found[prompt].source}"))
        else:
            found[prompt] = ProbePrompt(prompt, _responses(row, wanted, source, skipped), source)
            skipped += [
                SkippedResponse(path.name, name, _why_ignored(name))
                for name in row
                if name not in wanted and name != "prompt"
            ]
    return ProbeSet(tuple(found.values()), _gathered(path.name, wanted, len(found), skipped))


def _objects(path: Path, skipped: list[SkippedResponse]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of every usable line; blank lines are passed over, broken ones reported."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                source = f"{path.name}:{number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    skipped.append(SkippedResponse(source, "*", f"not JSON: {error.msg}"))
                    continue
                if isinstance(row, dict):
                    yield source, row
                else:
                    skipped.append(SkippedResponse(source, "*", f"wanted a JSON object, got {_shown(row)}"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the probe file {path}: {error}; wanted JSON lines in UTF-8") from error


def _responses(
    row: dict[str, Any], wanted: Sequence[str], source: str, skipped: list[SkippedResponse]
) -> dict[str, str]:
    """The usable responses of one line, kind → text."""
    responses = {}
    for kind in wanted:
        text = row.get(kind)
        if text is None:
            skipped.append(SkippedResponse(source, kind, "missing"))
        elif not isinstance(text, str):
            skipped.append(SkippedResponse(source, kind, f"wanted text, got {_shown(text)}"))
        elif not text.strip():
            skipped.append(SkippedResponse(source, kind, "empty response"))
        else:
            responses[kind] = text
    return responses


def _gathered(
    name: str, wanted: Sequence[str], lines: int, skipped: list[SkippedResponse]
) -> tuple[SkippedResponse, ...]:
    """The same list with a kind that no line has, and an ignored field, said once for the file."""
    missing = [s.kind for s in skipped if s.reason == "missing"]
    absent = [kind for kind in wanted if lines and missing.count(kind) == lines]
    rest = [s for s in skipped if not (s.reason == "missing" and s.kind in absent)]
    return tuple(
        dict.fromkeys([*(SkippedResponse(name, kind, f"in none of {lines} prompts") for kind in absent), *rest])
    )


def _why_ignored(name: str) -> str:
    reason = IGNORED_FIELDS.get(name, "a kind that was not asked for" if name in KINDS else "not a response kind")
    return f"field ignored ({reason})"


def _shown(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
