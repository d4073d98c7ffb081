"""Shapes of preference rows: which column is which part of a pair. One table, and what ``--columns`` writes instead.

A column is written ``name``; ``a.b`` is a field of a struct, ``a[0]`` an entry of a list, ``a[:-1]`` a part of it;
``a+b`` joins two texts by a line feed, where b may be empty or missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dyn_probe.data.records import SourceRow, visible
from dyn_probe.errors import BadInput, did_you_mean, nearest


@dataclass(frozen=True)
class Shape:
    """Which column is which part.

    Args:
        name: for messages and docs.
        chosen, rejected: the responses; they may be whole conversations that begin with the prompt.
        prompt: a text or turns, taken as they are; empty: what both sides begin with.
        user: a text that is the user's turn of a conversation, in the place of ``prompt``.
        used_by: who writes such files.
        extra: further parts, part → column: ``system``, ``history``, ``tools``, ``chat_template_kwargs``,
            ``win_probability``.
    """

    name: str
    chosen: str
    rejected: str
    prompt: str = ""
    user: str = ""
    used_by: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, str]:
        """Part → column, of the parts that are there."""
        parts = {"prompt": self.prompt, "user": self.user, "chosen": self.chosen, "rejected": self.rejected}
        return {part: column for part, column in (*self.extra.items(), *parts.items()) if column}


SHAPES: tuple[Shape, ...] = (
    Shape(
        "OpenAI preference", "preferred_output", "non_preferred_output", prompt="input.messages",
        used_by="OpenAI fine-tuning",
    ),
    Shape(
        "input, preferred_output, non_preferred_output", "preferred_output", "non_preferred_output", user="input",
        used_by="the same with a text as input",
    ),
    Shape("messages, rejected_messages", "messages", "rejected_messages", used_by="ms-swift"),
    Shape(
        "messages, rejected_response", "messages[-1:]", "rejected_response", prompt="messages[:-1]",
        used_by="ms-swift",
    ),
    Shape("prompt, chosen, rejected", "chosen", "rejected", prompt="prompt", used_by="TRL, most of the hub"),
    Shape("prompt, chosen_response, rejected_response", "chosen_response", "rejected_response", prompt="prompt"),
    Shape("messages, chosen, rejected", "chosen", "rejected", prompt="messages"),
    Shape(
        "conversations, chosen, rejected", "chosen", "rejected", prompt="conversations",
        used_by="ShareGPT, LLaMA-Factory",
    ),
    Shape("conversation, chosen, rejected", "chosen", "rejected", prompt="conversation"),
    Shape(
        "instruction, chosen_response, rejected_response", "chosen_response", "rejected_response",
        user="instruction+input", used_by="argilla, distilabel",
    ),
    Shape(
        "instruction, chosen, rejected", "chosen", "rejected", user="instruction+input",
        used_by="alpaca, LLaMA-Factory",
    ),
    Shape(
        "instruction, output of two", "output[0]", "output[1]", user="instruction+input",
        used_by="LLaMA-Factory, older",
    ),
    Shape("question, chosen, rejected", "chosen", "rejected", user="question", used_by="orca"),
    Shape("query, chosen, rejected", "chosen", "rejected", user="query"),
    Shape("input, chosen, rejected", "chosen", "rejected", user="input", used_by="distilabel"),
    Shape("chosen, rejected", "chosen", "rejected", used_by="HH-RLHF, TRL with an implicit prompt"),
)  # fmt: skip
"""Tried in this order: the first whose columns are all there reads the file. ``instruction``, ``question``, ``query``
and ``input`` become the user's turn of a conversation."""

EXTRA: dict[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt", "system_message"),
    "history": ("history",),
    "tools": ("tools", "input.tools"),
    "chat_template_kwargs": ("chat_template_kwargs",),
    "win_probability": ("win_probability", "p_chosen"),
}
"""Part → columns that are read as it beside any shape, the first that is there (``history`` beside a ``user`` part)."""

PARTS = ("prompt", "user", "chosen", "rejected", *EXTRA)
"""What ``--columns`` may name, beside ``ignore``."""

UNPAIRED = ("completion", "response", "messages", "conversations", "output", "answer")
"""Beside ``label``: rows of KTO, one response each."""

STEP = re.compile(r"\.([^.\[\]]+)|\[(-?\d*)(:?)(-?\d*)\]")
"""One step of a column's path into its value."""


def base(column: str) -> str:
    """The column that a path begins in."""
    return re.split(r"[.\[]", column, maxsplit=1)[0]


def bases(shape: Shape) -> set[str]:
    """Every column that the shape reads."""
    return {base(one) for column in shape.columns.values() for one in column.split("+")}


def value_at(values: Mapping[str, Any], column: str) -> Any:
    """What stands at a column's path, None if nothing does. A ``+`` is not followed here."""
    if column in values:
        return values[column]
    found = values.get(base(column))
    for step in STEP.finditer(column[len(base(column)) :]):
        name, first, colon, last = step.groups()
        if name is not None:
            found = found.get(name) if isinstance(found, Mapping) else None
        elif not isinstance(found, Sequence) or isinstance(found, str):
            return None
        elif colon:
            found = found[int(first) if first else None : int(last) if last else None]
        else:
            found = found[int(first)] if -len(found) <= int(first) < len(found) else None
    return found


def recognise(rows: Sequence[SourceRow], named: str = "") -> Shape:
    """The shape of a file's rows, with the further columns that it reads.

    Args:
        named: what ``--columns`` says: ``PART=COLUMN,…``; ``ignore=COLUMN`` leaves a column aside.

    Raises:
        BadInput: no shape fits, or a named column is not there; says which columns there are.
    """
    given, ignored = parse_columns(named)
    columns = [name for name in column_names(rows) if name not in ignored]
    wrong = [one for column in given.values() for one in column.split("+") if base(one) not in columns]
    if wrong:
        hints = "; ".join(f"no column {base(one)!r}{did_you_mean(base(one), columns)}" for one in wrong)
        raise BadInput(f"--columns: {hints}; the columns are: {listing(columns)}")
    if {"prompt", "user", "chosen", "rejected"} & set(given):
        found = _named_shape(given, columns)
    else:
        fitting = (shape for shape in SHAPES if _fits(shape, rows, columns))
        found = next(fitting, None) or _no_shape(rows, columns)
    usual = {part: _present(names, rows, columns) for part, names in EXTRA.items()}
    extra = {part: column for part, column in {**usual, **given}.items() if part in EXTRA and column}
    if not found.user and "history" not in given:
        extra.pop("history", None)
    return replace(found, extra=extra)


def parse_columns(named: str) -> tuple[dict[str, str], set[str]]:
    """``PART=COLUMN,…`` as part → column, and the columns to ignore.

    Raises:
        BadInput: another form, or an unknown part.
    """
    given: dict[str, str] = {}
    ignored: set[str] = set()
    for entry in filter(None, map(str.strip, named.split(","))):
        part, equals, column = (text.strip() for text in entry.partition("="))
        if not (part and equals and column):
            raise BadInput(f"--columns wants PART=COLUMN,…; got {entry!r}; parts: {', '.join((*PARTS, 'ignore'))}")
        if part == "ignore":
            ignored |= set(column.split("+"))
        elif part not in PARTS:
            hint = did_you_mean(part, PARTS)
            raise BadInput(f"--columns: unknown part {part!r}{hint}; choose from: {', '.join((*PARTS, 'ignore'))}")
        elif part in given:
            raise BadInput(f"--columns names {part} twice")
        else:
            given[part] = column
    if {"prompt", "user"} <= set(given):
        raise BadInput("--columns: prompt is taken as it is, user as the user's turn; name one of them")
    return given, ignored


def column_names(rows: Iterable[SourceRow]) -> list[str]:
    """Every column that a row has, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def listing(columns: Iterable[str]) -> str:
    """Names of columns for a message."""
    return ", ".join(visible(str(name)) for name in columns)


def _named_shape(given: Mapping[str, str], columns: Sequence[str]) -> Shape:
    """The named columns; what is not named has its own name, the prompt where there is such a column."""
    user = given.get("user", "")
    prompt = given.get("prompt", "" if user or "prompt" not in columns else "prompt")
    return Shape("named by --columns", given.get("chosen", "chosen"), given.get("rejected", "rejected"), prompt, user)


def _fits(shape: Shape, rows: Sequence[SourceRow], columns: Sequence[str]) -> bool:
    """Whether every column that the shape needs has a value somewhere. A prompt that is there and null is a prompt:
    what both sides begin with is taken for it only where there is no such column."""
    if not shape.prompt and not shape.user and "prompt" in columns:
        return shape.chosen == "messages" and _has(shape, rows, columns)
    return _has(shape, rows, columns)


def _has(shape: Shape, rows: Sequence[SourceRow], columns: Sequence[str]) -> bool:
    needed = [column.split("+")[0] for column in shape.columns.values()]
    if shape.prompt == "prompt":
        needed.remove("prompt")
        if "prompt" not in columns:
            return False
    return all(_somewhere(column, rows, columns, text=column == shape.user.split("+")[0]) for column in needed)


def _somewhere(column: str, rows: Sequence[SourceRow], columns: Sequence[str], text: bool = False) -> bool:
    if base(column) not in columns:
        return False
    found = (value_at(row.values, column) for row in rows)
    return any(isinstance(value, str) if text else value is not None for value in found)


def _present(names: Iterable[str], rows: Sequence[SourceRow], columns: Sequence[str]) -> str:
    """The first of these columns that has something in it."""
    there = (name for name in names if base(name) in columns)
    return next((name for name in there if any(filled(value_at(row.values, name)) for row in rows)), "")


def filled(value: Any) -> bool:
    """Whether a value is neither null nor empty."""
    return value is not None and not (isinstance(value, str | Sequence | Mapping) and not value)


def _no_shape(rows: Sequence[SourceRow], columns: Sequence[str]) -> Shape:
    """Refuse a file of another shape, saying what would be read."""
    source, found = rows[0].source, listing(columns) or "none"
    if "label" in columns and any(name in columns for name in UNPAIRED):
        raise BadInput(
            f"{source}: rows with a label are single responses (as KTO trains on), not pairs; wanted a chosen and a "
            f"rejected response in one row; found the columns {found}"
        )
    missing = [name for name in ("chosen", "rejected") if name not in columns]
    near = dict.fromkeys(filter(None, (nearest(name, columns) for name in missing)))
    hints = f" (did you mean {' and '.join(map(visible, near))}?)" if near else ""
    what = f"no column {' or '.join(missing)}{hints}" if missing else "columns without any value"
    beside = [base(shape.prompt or shape.user) for shape in SHAPES if shape.chosen == "chosen"]
    known = f"chosen and rejected, alone or beside {', '.join(filter(None, dict.fromkeys(beside)))}"
    statements = (
        "; statements with a sentiment are read by --data sentiment:STYLE@FILE"
        if "text" in columns and {"sentiment", "label", "label_text"} & set(columns)
        else ""
    )
    raise BadInput(
        f"{source}: {what}; found the columns {found}; wanted {known}, or --columns "
        f"prompt=COLUMN,chosen=COLUMN,rejected=COLUMN{statements}"
    )
