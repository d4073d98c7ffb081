"""Prompts to answer, from a file of prompts or from preference data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dyn_probe.data.reading import read_pairs
from dyn_probe.data.records import SourceRow
from dyn_probe.data.sources import read_source
from dyn_probe.errors import BadInput
from dyn_probe.mass.conversations import prompt_text

AS_TURN = ("instruction", "question", "query")
"""Columns whose text is the user's turn, so that a chat template is put around it."""
AS_TEXT = ("prompt",)
"""Columns whose text is continued as it stands, as ``record`` trains on it; a conversation takes the chat template."""


@dataclass(frozen=True)
class Asked:
    """One prompt: what a person asked (``instruction``), and the text that the model continues."""

    instruction: str
    text: str


def read_prompts(name: str, tokenizer: Any, count: int | None = None) -> list[Asked]:
    """The prompts that ``name`` stands for, each once, in the order of the rows.

    Args:
        name: a file, folder or hub id with a column of AS_TURN or AS_TEXT, or anything that ``record --data`` reads.
        count: at most so many prompts.

    Raises:
        BadInput: there is no such source, or no prompt in it.
    """
    found = [] if name.startswith("sentiment:") else _from_columns(name, tokenizer)
    if not found:
        found = [_asked(pair.prompt, tokenizer) for pair in read_pairs(name).pairs]
    once = list(dict.fromkeys(one for one in found if one.text.strip()))
    if not once:
        raise BadInput(f"no row of {name} has a prompt; wanted text in {', '.join((*AS_TURN, *AS_TEXT))}")
    return once[:count]


def _from_columns(name: str, tokenizer: Any) -> list[Asked]:
    rows = [row.values for row in read_source(name) if isinstance(row, SourceRow)]
    if column := next((one for one in AS_TURN if any(_usable(row.get(one)) for row in rows)), ""):
        turns = [[{"role": "user", "content": row[column]}] for row in rows if _usable(row.get(column))]
        chat = getattr(tokenizer, "chat_template", None) is not None
        return [_asked(turn if chat else turn[0]["content"], tokenizer) for turn in turns]
    column = next((one for one in AS_TEXT if any(_usable(row.get(one)) for row in rows)), "")
    return [_asked(row[column], tokenizer) for row in rows if _usable(row.get(column))] if column else []


def _usable(value: Any) -> bool:
    """Whether a value is a text or a conversation."""
    turns = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return (isinstance(value, str) and bool(value.strip())) or (
        turns and all(isinstance(one, Mapping) and isinstance(one.get("content"), str) for one in value)
    )


def _asked(prompt: Any, tokenizer: Any) -> Asked:
    text = prompt_text(list(prompt) if not isinstance(prompt, str) else prompt, tokenizer)
    return Asked(prompt if isinstance(prompt, str) else str(prompt[-1]["content"]), text)
