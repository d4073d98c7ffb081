"""Values of columns as texts or turns: messages in every spelling that data sets use, in one form.

A turn keeps every key that a chat template may read (``tool_calls``, ``name``, ``reasoning_content``, …); null keys
are dropped, since a Parquet struct writes them into every row. ``content`` stays None where it is None.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from dyn_probe.data.records import BadRow, Message, Text, shown

ROLES: dict[str, str] = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "assistant": "assistant", "model": "assistant", "function_call": "assistant", "system": "system",
    "observation": "tool", "tool": "tool",
}  # fmt: skip
"""Who speaks in ``from``/``value`` turns (ShareGPT) → role. Anybody else keeps their name."""

WRITTEN = re.compile(r"""\s*(\[\s*)?\{\s*["'](role|from|content|value|tool_calls)["']\s*:""")
"""How a text begins that is a message, or a list of them, written down."""


def text_of(value: Any, name: str) -> Text:
    """A text as it is, or turns: a list of messages, or one message.

    Raises:
        BadRow: the value is none of these, or a message has a part that is no text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return text_of([value], name)
    if isinstance(value, Sequence) and all(map(_is_message, value)):
        return tuple(turn(message, name) for message in value)
    wanted = f"{name} must be a text, or a list of messages with role and content"
    texts = isinstance(value, Sequence) and bool(value) and all(isinstance(one, str) for one in value)
    way = f"; --columns {name}=COLUMN[0] reads the first of the texts" if texts else ""
    raise BadRow(wanted, f"got {shown(value)}{way}", of_file=True)


def written_messages(value: Any, name: str) -> Any:
    """The messages that a text is, where it is nothing but messages written as JSON (or as Python prints them).

    Returns:
        None for anything else.

    Raises:
        BadRow: the text begins like a list of messages and cannot be read.
    """
    if not isinstance(value, str) or not WRITTEN.match(value):
        return None
    try:
        found = read_written(value, name)
    except BadRow:
        if value.lstrip().startswith("[") and "content" in value and "role" in value:
            raise
        return None
    messages = [found] if isinstance(found, Mapping) else found
    return found if isinstance(messages, list) and messages and all(map(_is_message, messages)) else None


def read_written(text: str, name: str) -> Any:
    """The value that is written as JSON (or as Python prints it) in a text."""
    for reader in (json.loads, ast.literal_eval):
        try:
            return reader(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
    wanted = f"{name} is text that begins like JSON and cannot be read as JSON"
    raise BadRow(wanted, f"write the value itself, not its text; got {shown(text)}", of_file=True)


def _is_message(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    if isinstance(value.get("role"), str):
        return "content" in value or bool(value.get("tool_calls"))
    return isinstance(value.get("from"), str) and isinstance(value.get("value"), str)


def turn(message: Mapping[str, Any], name: str) -> Message:
    """One message with role and content, its text parts joined."""
    if not isinstance(message.get("role"), str):
        return _from_value(message["from"], message["value"], name)
    kept = {key: value for key, value in message.items() if value is not None or key == "content"}
    if "content" in kept:
        kept["content"] = _content(kept["content"], name)
    if isinstance(kept.get("tool_calls"), str):
        kept["tool_calls"] = read_written(kept["tool_calls"], f"tool_calls of {name}")
    return kept


def _content(value: Any, name: str) -> str | None:
    """The text of a content: itself, or its text parts one after the other."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, Sequence):
        raise BadRow(f"the content of a message in {name} must be a text", f"got {shown(value)}", of_file=True)
    return "".join(_part(part, name) for part in value)


def _part(part: Any, name: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise BadRow(
        f"a message in {name} has a part of type {kind}; only text can be recorded",
        'dyn-probe supports text-only models: leave such rows out, or write contents of {"type": "text"} alone',
        of_file=True,
    )


def _from_value(speaker: str, value: str, name: str) -> Message:
    """A turn written with ``from`` and ``value``."""
    role = ROLES.get(speaker.lower(), speaker)
    if speaker.lower() != "function_call":
        return {"role": role, "content": value}
    written = read_written(value, f"the function_call in {name}")
    functions = written if isinstance(written, list) else [written]
    if not all(isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in functions):
        raise BadRow(f"the function_call in {name} must be JSON with name and arguments", f"got {shown(value)}")
    return {
        "role": role, "content": "", "tool_calls": [{"type": "function", "function": dict(one)} for one in functions],
    }  # fmt: skip


def history_turns(value: Any) -> tuple[Message, ...]:
    """Earlier turns: messages, or ``[question, answer]`` pairs."""
    pairs = isinstance(value, Sequence) and not isinstance(value, str)
    if pairs and value and all(isinstance(one, Sequence) and not isinstance(one, str) for one in value):
        said = [text for one in value for text in one]
        if all(len(one) == 2 for one in value) and all(isinstance(text, str) for text in said):
            return tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said))
    found = text_of(value, "history")
    if isinstance(found, str):
        raise BadRow("history must be a list of messages or of [question, answer]", f"got {shown(value)}", of_file=True)
    return found


def as_turns(text: Text, role: str) -> tuple[Message, ...]:
    """Turns as they are; a text as one turn of ``role``."""
    return ({"role": role, "content": text},) if isinstance(text, str) else text


def calls(message: Message) -> list[Any]:
    """The functions that a turn calls."""
    found = message.get("tool_calls") or message.get("function_call") or []
    return list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found]


def turn_key(message: Message) -> tuple[str, str, str]:
    """What makes two turns the same: role, content and calls, and no other key."""
    return str(message["role"]), message.get("content") or "", json.dumps([_call(one) for one in calls(message)])


def _call(call: Any) -> Any:
    """A call's name and arguments, however they are written."""
    function = call.get("function") or call if isinstance(call, Mapping) else call
    if not isinstance(function, Mapping):
        return str(function)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError):
            arguments = json.loads(arguments)
    return [str(function.get("name")), json.dumps(arguments, sort_keys=True, default=str)]


def call_names(message: Message) -> list[str]:
    """Names of the functions that a turn calls."""
    return [one[0] for call in calls(message) if isinstance(one := _call(call), list)]


def says_something(text: Text) -> bool:
    """Whether there is any content, call or reasoning in it."""
    if isinstance(text, str):
        return bool(text.strip())
    return any(
        (one.get("content") or "").strip() or calls(one) or str(one.get("reasoning_content") or "").strip()
        for one in text
    )


def strings(value: Any, leave: Sequence[str] = ()) -> Iterator[str]:
    """Every text within a value, keys of mappings left out.

    Args:
        leave: keys whose values are left out too.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if key not in leave:
                yield from strings(one, leave)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for one in value:
            yield from strings(one, leave)
