"""A row of a preference file as a pair: plain or conversational, with an explicit or an implicit prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dyn_probe.data.prefix import common_prefix
from dyn_probe.data.records import Message, PreferencePair, Skipped, Text
from dyn_probe.errors import BadInput

WANTED = "wanted chosen and rejected (and prompt, unless both begin with it)"


def pair_from_row(row: Mapping[str, Any], source: str) -> PreferencePair | Skipped:
    """The pair in a row, or why the row cannot be trained on.

    Without a ``prompt``, the prompt is what chosen and rejected begin with in common: characters of texts, whole
    messages of conversations. A plain prompt beside conversations that repeat it is ignored, as TRL does.

    Raises:
        BadInput: fields are missing or of a wrong type, which is a fault of the file and not of one row.
    """
    missing = [name for name in ("chosen", "rejected") if name not in row]
    if missing:
        raise BadInput(
            f"{source}: no field {' or '.join(missing)}; {WANTED}; found: {', '.join(map(str, row)) or 'none'}"
        )
    empty = [name for name in ("chosen", "rejected") if row[name] is None]
    if empty:
        return Skipped(source, f"{' and '.join(empty)} empty")
    chosen, rejected = (_text(row[name], name, source) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadInput(f"{source}: chosen and rejected must both be texts or both be lists of messages")
    prompt = None if row.get("prompt") is None else _text(row["prompt"], "prompt", source)
    return _usable(_split(prompt, chosen, rejected, source), source)


def _split(prompt: Text | None, chosen: Text, rejected: Text, source: str) -> tuple[Text, Text, Text]:
    """Prompt, chosen and rejected, each without the others."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        if isinstance(prompt, tuple):
            raise BadInput(
                f"{source}: the prompt is a list of messages, but chosen and rejected are texts; "
                'write them as messages too: [{"role": "assistant", "content": "…"}]'
            )
        return (prompt, chosen, rejected) if prompt is not None else _split_texts(chosen, rejected)
    assert isinstance(chosen, tuple) and isinstance(rejected, tuple)
    if isinstance(prompt, tuple):
        return prompt, chosen, rejected
    shared = _shared_messages(chosen, rejected)
    if not shared and prompt:
        return ({"role": "user", "content": prompt},), chosen, rejected
    return chosen[: len(shared)], chosen[len(shared) :], rejected[len(shared) :]


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The shared beginning is the prompt; a space at its end goes to the responses, where tokens begin."""
    length = max(min(common_prefix(chosen, rejected), len(chosen) - 1, len(rejected) - 1), 0)
    if chosen[max(length - 1, 0) : length] == " ":
        length -= 1
    return chosen[:length], chosen[length:], rejected[length:]


def _shared_messages(chosen: Sequence[Message], rejected: Sequence[Message]) -> tuple[Message, ...]:
    """Messages that both conversations begin with; at least one is left to each as its response."""
    return tuple(chosen[: min(common_prefix(chosen, rejected), len(chosen) - 1, len(rejected) - 1)])


def _usable(parts: tuple[Text, Text, Text], source: str) -> PreferencePair | Skipped:
    prompt, chosen, rejected = parts
    empty = [n for n, text in (("chosen", chosen), ("rejected", rejected)) if not _content(text).strip()]
    if empty:
        return Skipped(source, f"{' and '.join(empty)} empty")
    if chosen == rejected:
        return Skipped(source, "chosen and rejected are identical")
    return PreferencePair(prompt, chosen, rejected, source)


def _content(text: Text) -> str:
    return text if isinstance(text, str) else "".join(message["content"] for message in text)


def _text(value: Any, name: str, source: str) -> Text:
    """A text, or a list of messages with role and content."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(_is_message(message) for message in value):
        return tuple(dict(message) for message in value)
    shown = repr(value)[:60]
    raise BadInput(f"{source}: {name} must be a text, or a list of messages with role and content; got {shown}")


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
