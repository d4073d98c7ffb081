"""Reading a probe file: JSON lines with a prompt and one field per response kind. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dyn_probe.errors import BadInput, half_character
from dyn_probe.mass.probe_kinds import IGNORED_FIELDS, KINDS
from dyn_probe.mass.probes import ABSENT, UNFINISHED, ProbePrompt, ProbeSet, SkippedResponse


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
        elif broken := half_character(prompt):
            skipped.append(SkippedResponse(source, "*", f"prompt {broken}"))
        elif prompt in found:
            skipped.append(SkippedResponse(source, "*", f"same prompt as {found[prompt].source}"))
        else:
            responses = _responses(row, wanted, source, skipped)
            found[prompt] = ProbePrompt(prompt, responses, source, _unfinished(row, source, skipped))
            skipped += [
                SkippedResponse(path.name, _plain(name), _why_ignored(name))
                for name in row
                if name not in (*wanted, "prompt", UNFINISHED)
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
                except RecursionError:
                    skipped.append(SkippedResponse(source, "*", "not usable JSON: nested too deep"))
                    continue
                except ValueError as error:  # JSONDecodeError, or a number of too many digits
                    said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    skipped.append(SkippedResponse(source, "*", f"not JSON: {said}"))
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
        elif broken := half_character(text):
            skipped.append(SkippedResponse(source, kind, broken))
        else:
            responses[kind] = text
    return responses


def _unfinished(row: dict[str, Any], source: str, skipped: list[SkippedResponse]) -> tuple[str, ...]:
    """The kinds that the line says were cut."""
    found = row.get(UNFINISHED, [])
    if isinstance(found, list) and all(isinstance(kind, str) for kind in found):
        return tuple(found)
    skipped.append(SkippedResponse(source, UNFINISHED, f"ignored: wanted a list of kinds, got {_shown(found)}"))
    return ()


def _plain(text: str) -> str:
    """The text as it can be printed."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _gathered(
    name: str, wanted: Sequence[str], lines: int, skipped: list[SkippedResponse]
) -> tuple[SkippedResponse, ...]:
    """The same list with a kind that no line has, and an ignored field, said once for the file."""
    missing = [s.kind for s in skipped if s.reason == "missing"]
    absent = [kind for kind in wanted if lines and missing.count(kind) == lines]
    rest = [s for s in skipped if not (s.reason == "missing" and s.kind in absent)]
    return tuple(
        dict.fromkeys([*(SkippedResponse(name, kind, f"{ABSENT} of {lines} prompts") for kind in absent), *rest])
    )


def _why_ignored(name: str) -> str:
    reason = IGNORED_FIELDS.get(name, "a kind that was not requested" if name in KINDS else "not a response kind")
    return f"field ignored ({reason})"


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    try:
        return f"{type(value).__name__} {_plain(str(value)[:40])!r}"
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        return f"a {type(value).__name__} too large to show"
