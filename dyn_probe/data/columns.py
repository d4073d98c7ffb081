"""Columns that a shape does not read: named always, and refused where they hold a part of the conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from dyn_probe.data.records import BadRow, PreferencePair, SourceRow, shown
from dyn_probe.data.shapes import Shape, bases, column_names, filled, parse_columns
from dyn_probe.data.turns import strings
from dyn_probe.errors import BadInput

CARRYING: dict[str, str] = {
    **dict.fromkeys(("prompt", "question", "questions", "query", "instruction", "input", "context", "user", "post"),
                    "prompt"),
    **dict.fromkeys(("messages", "conversations", "conversation", "dialogue", "dialog", "history", "problem"),
                    "prompt"),
    **dict.fromkeys(("system", "system_prompt", "system_message"), "system"),
    **dict.fromkeys(("tools", "functions"), "tools"),
    "chat_template_kwargs": "chat_template_kwargs",
}  # fmt: skip
"""Column that holds a part of the conversation, unless its text is in the pair already → the part to name it as."""

MEDIA = ("images", "image", "videos", "video", "audios", "audio")
"""Columns that a model of text cannot read."""

PROSE_ROWS, PROSE_WORDS = 200, 3
"""Rows that are looked at, and words from which a text is prose."""


def unread_columns(rows: Sequence[SourceRow], shape: Shape) -> list[str]:
    """Columns that the shape does not read, those to be ignored included, in order of appearance."""
    return [name for name in column_names(rows) if name not in bases(shape)]


def watched(unread: Sequence[str], named: str = "") -> list[str]:
    """Those of the unread columns that may hold a part of the conversation and are not to be ignored."""
    _, ignored = parse_columns(named)
    return [name for name in unread if (_part(name) or _is_media(name)) and name not in ignored]


def _part(name: str) -> str:
    """The part of a conversation that a column of this name holds, in whatever case it is written; "" for none."""
    return CARRYING.get(name.lower(), "")


def _is_media(name: str) -> bool:
    return name.lower() in MEDIA


def check_unread(values: Mapping[str, Any], pair: PreferencePair, names: Sequence[str], shape: Shape) -> None:
    """Refuse a row whose unread columns hold something that is nowhere in its pair.

    Args:
        names: the columns to look at (``watched``).
        shape: what is read.

    Raises:
        BadRow: names the columns, and how to read them or to leave them aside.
    """
    there = [name for name in names if filled(values.get(name))]
    media = [name for name in there if _is_media(name)]
    if media:
        what = " and ".join(media)
        raise BadRow(
            f"{what} cannot be recorded: dyn-probe supports text-only models",
            f"--columns ignore={'+'.join(media)} trains on the text alone",
            of_file=True,
        )
    lost = [name for name in there if not _within(values[name], pair)] if there else []
    if lost:
        raise BadRow(*_lost(lost, values, shape), of_file=True)


def _lost(lost: Sequence[str], values: Mapping[str, Any], shape: Shape) -> tuple[str, str]:
    """Reason and detail of columns that would be ignored."""
    several = len(lost) > 1
    it = "them" if several else "it"
    ways = ",".join(_ways(lost, values, shape))
    return f"column{'s' if several else ''} {' and '.join(lost)} would not be read", (
        f"{lost[0]} holds {shown(values[lost[0]], 40)}, which is nowhere else in the row; write "
        f"--columns {ways} to read {it}, or --columns ignore={'+'.join(lost)} to ignore {it}"
    )


def _ways(lost: Sequence[str], values: Mapping[str, Any], shape: Shape) -> list[str]:
    """What ``--columns`` takes to read them: texts behind what the shape reads as the user's turn already."""
    texts = [name for name in lost if _part(name) == "prompt" and isinstance(values[name], str)]
    others = [f"{_part(name)}={name}" for name in lost if name not in texts]
    read = [name for name in (shape.user or shape.prompt or "").split("+") if name]
    part = "user" if shape.user else "prompt"
    return [*([f"{part}={'+'.join([*read, *texts])}"] if texts else []), *others]


def _within(value: Any, pair: PreferencePair) -> bool:
    """Whether every text in a value is in the pair: within its prompt, or the whole of another text."""
    prompt = " ".join(" ".join(strings(pair.prompt)).split())
    whole = {
        " ".join(text.split()) for text in strings((pair.chosen, pair.rejected, pair.tools, pair.template_options))
    }
    texts = [" ".join(text.split()) for text in strings(value, leave=("role", "from", "type"))]
    return all(text in whole or re.search(rf"(?<!\w){re.escape(text)}(?!\w)", prompt) for text in texts)


def unread_prose(
    pairs: Sequence[PreferencePair], rows: Sequence[SourceRow], unread: Sequence[str], named: str
) -> list[str]:
    """Columns of any other name that hold prose which is not in the pairs: the shape does not read them, and whether
    the model should see them only the user can tell."""
    _, ignored = parse_columns(named)
    looked_at = rows[:PROSE_ROWS]
    names = [name for name in unread if name not in ignored and _prose(looked_at, name)]
    if not names:
        return []
    values = {row.source: row.values for row in looked_at}
    beside = [(values[pair.source], pair) for pair in pairs if pair.source in values]
    return [name for name in names if 2 * sum(not _within(row.get(name), pair) for row, pair in beside) > len(beside)]


def check_prose(pairs: Sequence[PreferencePair], rows: Sequence[SourceRow], unread: Sequence[str], named: str) -> None:
    """Refuse texts without a prompt column that share almost no beginning, where another column holds prose: the
    prompt is there.

    Raises:
        BadInput: names the columns and what to write.
    """
    _, ignored = parse_columns(named)
    first = list(islice((pair.prompt for pair in pairs), PROSE_ROWS))
    short = sum(isinstance(prompt, str) and len(prompt.split()) < PROSE_WORDS for prompt in first)
    if 2 * short <= len(first):
        return
    found = [name for name in unread if name not in ignored and _prose(rows[:PROSE_ROWS], name)]
    if found:
        raise BadInput(
            f"{rows[0].source}: no column prompt, and chosen and rejected share almost no prefix, while "
            f"{' and '.join(found)} hold{'s' if len(found) == 1 else ''} text, which would not be read; write "
            f"--columns prompt={found[0]} to read it, or --columns ignore={'+'.join(found)} to ignore it"
        )


def _prose(rows: Sequence[SourceRow], name: str) -> bool:
    """Whether a column holds a text of its own in most rows."""
    texts = [value for row in rows if isinstance(value := row.values.get(name), str)]
    long = [text for text in texts if len(text.split()) >= PROSE_WORDS]
    return bool(long) and 2 * len(long) > len(rows) and 2 * len(set(long)) > len(long)
