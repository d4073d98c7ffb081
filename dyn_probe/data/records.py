"""What the readers hand on: rows of a source, preference pairs, and rows that are left out with their reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""One turn of a conversation: ``role``, ``content`` (None beside tool calls), and all else that a template may read."""

Text = str | tuple[Message, ...]
"""A plain text, or a conversation."""


@dataclass(frozen=True)
class PreferencePair:
    """One prompt with a chosen and a rejected response, and the file and line (or generator) it came from.

    All three are plain texts, or all three are conversations.

    Args:
        tools: schemas of the functions that the chat template shows to the model.
        template_options: further variables of the chat template (the column ``chat_template_kwargs``).
        win_probability: p(chosen is preferred) where the data gives one, in [0, 1].
    """

    prompt: Text
    chosen: Text
    rejected: Text
    source: str = ""
    tools: tuple[Any, ...] = ()
    template_options: Mapping[str, Any] = field(default_factory=dict)
    win_probability: float | None = None

    @property
    def conversational(self) -> bool:
        """Whether the pair is made of messages."""
        return not isinstance(self.chosen, str)


@dataclass(frozen=True)
class SourceRow:
    """One row as its source has it: file and line, column → value."""

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Skipped:
    """One row that is not trained on: where it stands, and why.

    Args:
        reason: the same words for every row that is left out for this reason.
        detail: what it is in this row.
        expected: whether the task leaves such rows out by design (neutral statements).
    """

    source: str
    reason: str
    detail: str = ""
    expected: bool = False

    @property
    def why(self) -> str:
        """Reason and detail in one phrase."""
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


class BadRow(Exception):
    """Raised while a row is read, caught where its file is: the row is left out.

    Args:
        of_file: whether the fault lies in how the file is written, so that a file of such rows is refused.
    """

    def __init__(self, reason: str, detail: str = "", *, of_file: bool = False) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.of_file = reason, detail, of_file

    def at(self, source: str) -> Skipped:
        """The row that is left out for it."""
        return Skipped(source, self.reason, self.detail)


def by_reason(skipped: Sequence[Skipped]) -> dict[str, list[Skipped]]:
    """Reason → its rows, the most frequent reason first."""
    groups: dict[str, list[Skipped]] = {}
    for row in skipped:
        groups.setdefault(row.reason, []).append(row)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def listed(skipped: Sequence[Skipped], most: int = 3) -> str:
    """The reasons in one line, each with its first row and the number of rows."""
    groups = by_reason(skipped)
    parts = [visible(f"{rows[0].source}: {rows[0].why}{_more(len(rows))}") for rows in list(groups.values())[:most]]
    rest = sum(map(len, list(groups.values())[most:]))
    return "; ".join([*parts, *([f"and {rest} more"] if rest else [])])


def _more(rows: int) -> str:
    return "" if rows == 1 else f" ({rows} rows like it)"


def shown(value: object, most: int = 60) -> str:
    """A value for a message: on one line, not too long, without half characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        return f"a {type(value).__name__} too large to show"
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= most else f"{text[: most - 1]}…"


def visible(text: str) -> str:
    """A text on one line, fit for a terminal: line feeds, tabs and odd spaces by signs, other control characters by a
    placeholder."""
    text = text.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(one if one.isprintable() else "␣" if one.isspace() else "�" for one in text)
