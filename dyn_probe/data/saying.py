"""What is said about prepared pairs, line by line: a summary, the facts, what is left out. ``record`` prints it before
it trains, ``dyn-probe data`` as its first part."""

from __future__ import annotations

from collections.abc import Sequence

from dyn_probe.data.prepared import PreparedPairs, left_out_rows, lengths
from dyn_probe.data.reading import PairsRead
from dyn_probe.data.records import Skipped, by_reason
from dyn_probe.data.shapes import PARTS, listing
from dyn_probe.data.wording import counted

Line = tuple[str, str]
"""Level (``plain``, ``note``, ``warning`` or ``loud``) and text."""

MOST_REASONS, MOST_SOURCES = 8, 3


def said_of(data: PreparedPairs) -> list[Line]:
    """The summary in one line, then every fact, then the rows that are left out by reason."""
    return [("plain", summary(data)), *fact_lines(data), *left_out_lines(data)]


def summary(data: PreparedPairs) -> str:
    """Data, shape and sizes in one line."""
    median, _, longest = lengths(data.pairs)["prompt + longer response"]
    kept = f"{counted(len(data.pairs), 'pair')} from {counted(data.read.rows, 'row')}"
    return f"data: {kept}, read as {shape(data)}; median {median:,} tokens, longest {longest:,}"


def shape(data: PreparedPairs) -> str:
    """The shape, which column is which part, and what was not read."""
    unread = f"; not read: {listing(data.read.unread)}" if data.read.unread else ""
    return read_as(data.read) + unread


def read_as(read: PairsRead) -> str:
    """The shape, and the parts whose column has another name or that are no prompt or response."""
    order = {part: place for place, part in enumerate(PARTS)}
    own = [(part, part) for part in ("prompt", "chosen", "rejected")]
    columns = sorted(read.columns.items(), key=lambda one: order[one[0]])
    parts = [part if part == column else f"{part} ← {column}" for part, column in columns if (part, column) not in own]
    return read.shape + (f" ({', '.join(parts)})" if parts else "")


def fact_lines(data: PreparedPairs) -> list[Line]:
    """A line for every fact."""
    return [(fact.level, f"{fact.level}: {fact.sentence}") for fact in data.facts]


def left_out_lines(data: PreparedPairs) -> list[Line]:
    """The number of rows that are left out, loudly if it is large, and a line for every reason."""
    if not data.skipped:
        return []
    number, loud = left_out_rows(data.skipped, data.read.rows)
    every = f"{len(data.skipped):,} of {counted(data.read.rows, 'row')}"
    verb = "is" if len(data.skipped) == 1 else "are"
    head = f"{every} {verb} left out ({len(data.pairs):,} {'is' if len(data.pairs) == 1 else 'are'} used):"
    if loud:
        head = f"WARNING: {100 * number / data.read.rows:.0f} % of the rows are left out: {head}"
    reasons = [("plain", f"  {reason_line(reason, rows)}") for reason, rows in by_reason(data.skipped).items()]
    rest = len(reasons) - MOST_REASONS
    more = [("plain", f"  and {counted(rest, 'more reason')}; run.json lists every row")] if rest > 0 else []
    return [("loud" if loud else "note", head), *reasons[:MOST_REASONS], *more]


def reason_line(reason: str, rows: Sequence[Skipped]) -> str:
    """A reason, the number of its rows, and the first of them."""
    detail = f" ({rows[0].detail})" if rows[0].detail else ""
    return f"{counted(len(rows), 'row')}: {reason}{detail}: {places([row.source for row in rows])}"


def places(sources: Sequence[str]) -> str:
    """The first few places; what they have in common stands once: ``FILE:3, :7, :9, …``."""
    first, *others = sources[:MOST_SOURCES]
    place = first.rpartition(":")[0]
    short = [one.removeprefix(place) if place and one.startswith(f"{place}:") else one for one in others]
    return ", ".join([first, *short, *(["…"] if len(sources) > MOST_SOURCES else [])])
