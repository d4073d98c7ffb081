"""The sentiment task of Yuan et al. 2024 §4 as pairs, on generated statements or on your own.

Chosen states the sentiment of the statement, rejected the opposite. What follows or precedes the label is the same
on both sides, which is what entangles their gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dyn_probe.data.generated.statements import SENTIMENTS, Statement, generate_statements
from dyn_probe.data.generated.styles import STYLES, sentiment_prompt, sentiment_response
from dyn_probe.data.records import BadRow, PreferencePair, Skipped, listed, shown
from dyn_probe.data.shapes import listing
from dyn_probe.data.sources import read_source
from dyn_probe.errors import BadInput, half_character, unknown

DEFAULT_COUNT = 2048
"""Pairs where no number is named."""

LABELS = ("sentiment", "label_text", "label")
"""Columns that may say a statement's sentiment, the first that is there."""
SPELLINGS = {"pos": "positive", "neg": "negative"}
"""Short forms of a sentiment."""
NEUTRAL = "a neutral statement, and the task has two classes"
WANTED = f"wanted text, and {' or '.join(LABELS[:2])} {' or '.join(SENTIMENTS)}"


def sentiment_pairs(spec: str, count: int | None = None) -> tuple[list[PreferencePair], list[Skipped]]:
    """The pairs that ``STYLE`` or ``STYLE@FILE`` names, and the statements that are left out.

    Args:
        spec: a style, and optionally a file, folder or hub id of statements (see ``read_statements``).
        count: number of pairs (default: ``DEFAULT_COUNT`` generated ones, or all of the file).

    Raises:
        BadInput: unknown style, or statements that cannot be used.
    """
    style, at, file = spec.partition("@")
    if style not in STYLES:
        raise BadInput(unknown("sentiment style", style, STYLES, "sentiment:{}"))
    if at:
        found, skipped = read_statements(file, count)
    else:
        made = generate_statements(DEFAULT_COUNT if count is None else count)
        found, skipped = [(f"sentiment:{style} #{number}", one) for number, one in enumerate(made)], []
    return [_pair(style, statement, source) for source, statement in found], skipped


def read_statements(name: str, count: int | None = None) -> tuple[list[tuple[str, Statement]], list[Skipped]]:
    """(file and line, statement) of every row with ``text`` and a sentiment, and the rows that are left out.

    The sentiment stands in ``sentiment``, ``label_text`` or ``label``, as a word. Neutral statements are left out.

    Args:
        name: a file, folder or hub id.
        count: stop after so many statements.

    Raises:
        BadInput: the source cannot be read, or no row of it has a text and a sentiment of the two.
    """
    found: list[tuple[str, Statement]] = []
    skipped: list[Skipped] = []
    for row in read_source(name):
        if count is not None and len(found) >= count:
            break
        if isinstance(row, Skipped):
            skipped.append(row)
            continue
        try:
            found.append((row.source, _statement(row.values)))
        except BadRow as bad:
            skipped.append(replace(bad.at(row.source), expected=bad.reason == NEUTRAL))
    if not found:
        raise BadInput(f"no statement of {name} can be used: {listed(skipped) or 'it has no rows'}")
    return found, skipped


def _statement(values: Mapping[str, Any]) -> Statement:
    """The statement in a row.

    Raises:
        BadRow: no text, or no sentiment of the two.
    """
    text = values.get("text")
    if not isinstance(text, str) or not text.strip():
        raise BadRow("no text", f"{WANTED}; got text {shown(text, 30)} among the columns {listing(values)}")
    if broken := half_character(text):
        raise BadRow("half a surrogate pair in text", f"text {broken}")
    column = next((name for name in LABELS if values.get(name) is not None), "")
    label = values.get(column)
    word = str(label).strip().lower() if isinstance(label, str) else ""
    word = SPELLINGS.get(word, word)
    if word == "neutral":
        raise BadRow(NEUTRAL)
    if word not in SENTIMENTS:
        said = f"{column} {shown(label, 30)}" if column else "none"
        number = " (a number does not say which class it is)" if column and not isinstance(label, str) else ""
        raise BadRow("no sentiment", f"{WANTED}; got {said}{number} among the columns {listing(values)}")
    return Statement(text, word)


def _pair(style: str, statement: Statement, source: str) -> PreferencePair:
    other = SENTIMENTS[1 - SENTIMENTS.index(statement.sentiment)]
    chosen, rejected = (sentiment_response(style, label) for label in (statement.sentiment, other))
    return PreferencePair(sentiment_prompt(statement.text), chosen, rejected, source)
