"""What the data readers give: preference pairs as text, and what had to be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Message = dict[str, str]
"""One turn of a conversation: ``role`` and ``content``."""

Text = str | tuple[Message, ...]
"""A plain text, or a conversation."""


@dataclass(frozen=True)
class PreferencePair:
    """One prompt with a chosen and a rejected response, and the file and line (or generator) it came from.

    All three are plain texts, or all three are conversations.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    source: str = ""

    @property
    def conversational(self) -> bool:
        """Whether the pair is made of messages."""
        return not isinstance(self.chosen, str)


@dataclass(frozen=True)
class Skipped:
    """One row that is not trained on: where it stands, and why."""

    source: str
    reason: str


def plain_text(text: Text) -> str:
    """A text as one string, for tables and reports: a conversation becomes ``Role: content`` lines."""
    if isinstance(text, str):
        return text
    return "\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in text)


def listed(skipped: Sequence[Skipped], most: int = 5) -> str:
    """The first few skipped rows in one line."""
    rows = [f"{row.source}: {row.reason}" for row in skipped[:most]]
    more = [f"and {len(skipped) - most} more"] if len(skipped) > most else []
    return "; ".join([*rows, *more])
