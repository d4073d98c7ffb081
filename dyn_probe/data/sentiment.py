"""The sentiment task of Yuan et al. 2024 §4: four styles of answer whose chosen and rejected differ in one word.

Chosen states the sentiment of the statement, rejected the opposite. What follows or precedes the label is the same
on both sides, which is what entangles their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dyn_probe.data.files import read_rows
from dyn_probe.data.records import PreferencePair
from dyn_probe.data.statements import SENTIMENTS, Statement, generate_statements
from dyn_probe.errors import BadInput, unknown

STYLES: dict[str, str] = {
    "single-token": "{Label}",
    "short-suffix": "{Label} sentiment.",
    "long-suffix": "{Label} sentiment based on my judgement.",
    "prefix-suffix": "It has a {label} sentiment based on my judgement.",
}
"""Style → response; ``{label}`` is the sentiment, ``{Label}`` the same with a capital."""

DEFAULT_COUNT = 2048
"""Pairs where no number is named."""


def sentiment_prompt(statement: str) -> str:
    """The prompt about a statement. It ends in a space, so that a label is the same token in every style."""
    return f"{statement}\nSentiment: "


def sentiment_response(style: str, label: str) -> str:
    """The response of a style that states ``label``."""
    return STYLES[style].format(label=label, Label=label.capitalize())


def sentiment_pairs(spec: str, count: int | None = None) -> list[PreferencePair]:
    """The pairs that ``STYLE`` or ``STYLE@FILE.jsonl`` names.

    Args:
        spec: a style, and optionally a file of statements: JSON lines with ``text`` and ``sentiment``.
        count: number of pairs (default: ``DEFAULT_COUNT`` generated ones, or all of the file).

    Raises:
        BadInput: unknown style, or a statements file that cannot be used.
    """
    style, at, file = spec.partition("@")
    if style not in STYLES:
        raise BadInput(unknown("sentiment style", style, STYLES, "sentiment:{}"))
    if at:
        found = read_statements(Path(file))[:count]
    else:
        made = generate_statements(DEFAULT_COUNT if count is None else count)
        found = [(f"sentiment:{style} #{number}", statement) for number, statement in enumerate(made)]
    return [_pair(style, statement, source) for source, statement in found]


def read_statements(path: Path) -> list[tuple[str, Statement]]:
    """(file and line, statement) of every line of a statements file."""
    return [(source, _statement(row, source)) for source, row in read_rows(path)]


def _statement(row: dict[str, object], source: str) -> Statement:
    text, sentiment = row.get("text"), row.get("sentiment")
    if not isinstance(text, str) or not text.strip() or sentiment not in SENTIMENTS:
        fields = ", ".join(row) or "none"
        raise BadInput(
            f"{source}: wanted text, and sentiment {' or '.join(SENTIMENTS)}; "
            f"got sentiment {sentiment!r} among the fields {fields}"
        )
    return Statement(text, str(sentiment))


def _pair(style: str, statement: Statement, source: str) -> PreferencePair:
    other = SENTIMENTS[1 - SENTIMENTS.index(statement.sentiment)]
    labels: Sequence[str] = (statement.sentiment, other)
    chosen, rejected = (sentiment_response(style, label) for label in labels)
    return PreferencePair(sentiment_prompt(statement.text), chosen, rejected, source)
