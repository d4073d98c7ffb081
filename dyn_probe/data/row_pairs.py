"""A row of a known shape as a pair: its columns read, its parts separated, its faults named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dyn_probe.data.columns import check_unread
from dyn_probe.data.records import BadRow, Message, PreferencePair, SourceRow, Text, shown
from dyn_probe.data.shapes import Shape, filled, value_at
from dyn_probe.data.splitting import separate
from dyn_probe.data.turns import (
    as_turns,
    history_turns,
    read_written,
    says_something,
    strings,
    text_of,
    turn_key,
    written_messages,
)
from dyn_probe.errors import half_character

RESERVED = (
    "tools", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict", "chat_template",
    "conversation", "padding", "truncation", "max_length", "return_tensors",
)  # fmt: skip
"""Names that ``chat_template_kwargs`` may not set: they are no variables of a template."""


def pair_from_row(row: SourceRow, shape: Shape, watch: Sequence[str] = ()) -> PreferencePair:
    """The pair in a row.

    Raises:
        BadRow: why the row cannot be trained on.
    """
    values = row.values
    raw = {side: value_at(values, column) for side, column in (("chosen", shape.chosen), ("rejected", shape.rejected))}
    empty = [side for side, value in raw.items() if value is None]
    if empty:
        raise BadRow(f"{' and '.join(empty)} empty")
    chosen, rejected = _sides(raw)
    prompt = _prompt(values, shape, isinstance(chosen, tuple) and isinstance(rejected, tuple))
    before = _before(values, shape)
    if before is not None or shape.user:  # a conversation, whatever the columns are
        chosen, rejected = _as_turns(prompt, chosen, rejected)
    parts = separate(prompt, chosen, rejected)
    pair = PreferencePair(
        _with(before, parts[0]), parts[1], parts[2], row.source, _tools(values, shape), _options(values, shape),
        _win_probability(values, shape),
    )  # fmt: skip
    check_usable(pair)
    check_unread(values, pair, watch, shape)
    return pair


def _sides(raw: Mapping[str, Any]) -> tuple[Text, Text]:
    """Both responses. Messages that are written as text are read, where both sides are such texts."""
    written = {side: written_messages(value, side) for side, value in raw.items()}
    if all(value is not None for value in written.values()):
        raw = written
    return text_of(raw["chosen"], "chosen"), text_of(raw["rejected"], "rejected")


def _prompt(values: Mapping[str, Any], shape: Shape, conversations: bool) -> Text | None:
    """The prompt's column as text or turns, the user's as a text; None where the sides hold the prompt.

    A null prompt costs the row, unless the sides are conversations: their shared turns are the prompt then.
    """
    column = shape.user or shape.prompt
    if not column:
        return None
    first, *others = column.split("+")
    found = value_at(values, first)
    if found is None or found == [] or (shape.user and not str(found).strip()):
        if conversations:
            return None
        raise BadRow("no prompt", f"{first} is {'null' if found is None else 'empty'}")
    if shape.user or others:
        return _joined([(name, value_at(values, name)) for name in (first, *others)])
    written = written_messages(found, "prompt")
    return text_of(found if written is None else written, "prompt")


def _joined(columns: Sequence[tuple[str, Any]]) -> str:
    """Texts of several columns, a line each; empty ones are left out."""
    texts = [(name, value) for name, value in columns if filled(value)]
    wrong = next((one for one in texts if not isinstance(one[1], str)), None)
    if wrong is not None:
        raise BadRow(f"{wrong[0]} must be a text", f"got {shown(wrong[1])}", of_file=True)
    return "\n".join(value for _, value in texts)


def _before(values: Mapping[str, Any], shape: Shape) -> tuple[Message, ...] | None:
    """What the columns system and history put before the prompt; None where the shape has neither."""
    if not {"system", "history"} & set(shape.extra):
        return None
    turns: list[Message] = []
    system = value_at(values, shape.extra["system"]) if "system" in shape.extra else None
    if isinstance(system, str) and system.strip():
        turns.append({"role": "system", "content": system})
    elif filled(system) and not isinstance(system, str):
        raise BadRow("system must be a text", f"got {shown(system)}", of_file=True)
    history = value_at(values, shape.extra["history"]) if "history" in shape.extra else None
    return (*turns, *(history_turns(history) if filled(history) else ()))


def _as_turns(prompt: Text | None, chosen: Text, rejected: Text) -> tuple[Text, Text]:
    """Responses that are texts, as the assistant's turns."""
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return chosen, rejected
    if prompt is None:
        raise BadRow(
            "the column system has no place: chosen and rejected are texts, and there is no prompt",
            "write the prompt in a column, or --columns ignore=system",
            of_file=True,
        )
    return as_turns(chosen, "assistant"), as_turns(rejected, "assistant")


def _with(before: Sequence[Message] | None, prompt: Text) -> Text:
    """The prompt behind the turns of the columns system and history; the same system turn stands once."""
    if not before or isinstance(prompt, str):
        return prompt
    first = prompt[0] if prompt else None
    if first is not None and first["role"] == "system" and before[0]["role"] == "system":
        if turn_key(first) != turn_key(before[0]):
            raise BadRow(
                "the column system and the conversation's own system turn differ",
                "--columns ignore=system keeps the turn",
            )
        before = before[1:]
        return (first, *before, *prompt[1:])
    return (*before, *prompt)


def _tools(values: Mapping[str, Any], shape: Shape) -> tuple[Any, ...]:
    """Schemas of the functions; a JSON text is read, as TRL does."""
    found = value_at(values, shape.extra["tools"]) if "tools" in shape.extra else None
    if isinstance(found, str) and found.strip():
        found = read_written(found, "tools")
    if not filled(found):
        return ()
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise BadRow("tools must be a list of functions", f"got {shown(found)}", of_file=True)
    return tuple(read_written(one, "tools") if isinstance(one, str) else one for one in found)


def _options(values: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """Variables of the chat template; null ones are left out, since a Parquet struct writes them into every row."""
    column = shape.extra.get("chat_template_kwargs")
    found = value_at(values, column) if column else None
    if isinstance(found, str) and found.strip():
        found = read_written(found, "chat_template_kwargs")
    if not filled(found):
        return {}
    if not isinstance(found, Mapping):
        raise BadRow("chat_template_kwargs must be a mapping", f"got {shown(found)}", of_file=True)
    wrong = [name for name in found if name in RESERVED]
    if wrong:
        raise BadRow(f"chat_template_kwargs may not set {', '.join(wrong)}", of_file=True)
    return {name: value for name, value in found.items() if value is not None}


def _win_probability(values: Mapping[str, Any], shape: Shape) -> float | None:
    column = shape.extra.get("win_probability")
    found = value_at(values, column) if column else None
    if found is None or not filled(found):
        return None
    try:
        value = math.nan if isinstance(found, bool) else float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise BadRow(f"{column} must be a probability, from 0 to 1", f"got {shown(found)}", of_file=True)
    return value


def check_usable(pair: PreferencePair) -> None:
    """Refuse what cannot be trained on whatever the tokenizer.

    Raises:
        BadRow: a side is empty, both are the same, tools stand beside texts, or a text has half a character.
    """
    empty = [side for side in ("chosen", "rejected") if not says_something(getattr(pair, side))]
    if empty:
        raise BadRow(f"{' and '.join(empty)} empty")
    asked = [side for side in ("chosen", "rejected") if _only_asks(getattr(pair, side))]
    if asked:
        raise BadRow(
            f"{' and '.join(asked)} {'is' if len(asked) == 1 else 'are'} no response of the model: only user or system "
            "turns",
            "end the conversation with the assistant's turn",
            of_file=True,
        )
    if _same(pair.chosen, pair.rejected):
        raise BadRow("chosen and rejected are identical")
    if pair.tools and not pair.conversational:
        raise BadRow("tools need a conversation", "write prompt, chosen and rejected as messages", of_file=True)
    if pair.template_options and not pair.conversational:
        raise BadRow(
            "chat_template_kwargs need a conversation: texts go through no template",
            "write prompt, chosen and rejected as messages, or --columns ignore=chat_template_kwargs",
            of_file=True,
        )
    for name in ("prompt", "chosen", "rejected", "tools"):
        broken = next(filter(None, map(half_character, strings(getattr(pair, name)))), "")
        if broken:
            raise BadRow(f"half a surrogate pair in {name}", broken.removeprefix("has half a character "))


def _only_asks(text: Text) -> bool:
    return not isinstance(text, str) and all(one["role"] in ("user", "system") for one in text)


def _same(left: Text, right: Text) -> bool:
    if isinstance(left, str) or isinstance(right, str):
        return left == right
    return list(map(turn_key, left)) == list(map(turn_key, right))
