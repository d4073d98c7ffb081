"""What is to be known about the data that were trained on: rows left out, rows cut, tokens that are not as one thinks.

The sentences about tokens stand in ``run.json``; whoever recorded the run wrote them there.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dyn_probe.report.verdicts.verdict import Number, Verdict, count, percent, say
from dyn_probe.trace.run_fields import DataFact

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

LOUD = 0.1
"""Share of left-out rows from which it is a warning."""
SHOWN = 3
"""Reasons that are named."""


def left_out(trace: Trace) -> list[Verdict]:
    """Rows of the data that were left out, by reason."""
    rows, data = trace.about.skipped_rows, trace.about.data
    if not rows:
        return []
    reasons = Counter(row.reason or "no reason given" for row in rows)
    words = "; ".join(f"{reason} ({number:,})" for reason, number in reasons.most_common(SHOWN))
    more = "; …" if len(reasons) > SHOWN else ""
    every, unexpected = data.rows or 0, len(rows) - (data.left_out_by_design or 0)
    loud = 0 < LOUD * every < unexpected
    part = [Number("skipped_share", "share of all rows", len(rows) / every, "share")] if every else []
    of = f" of {every:,} ({percent(len(rows) / every)})" if every else ""
    return say(
        "warning" if loud else "note",
        f"{count(len(rows), 'row')}{of} of the data {'was' if len(rows) == 1 else 'were'} skipped: {words}{more}.",
        "skipped_rows in run.json",
        Number("skipped", "skipped rows", len(rows), "rows"),
        *part,
    )


def tokens(trace: Trace) -> list[Verdict]:
    """What the tokens of the pairs are not as one would think: cut, begun twice, differing from the text."""
    return [verdict for fact in trace.about.data.facts.values() for verdict in _fact(fact)]


def _fact(fact: DataFact) -> list[Verdict]:
    """A fact of run.json as a verdict; nothing where it has no sentence."""
    sentence, number, of = fact.sentence, fact.count, fact.of
    if not sentence or number is None or not of:
        return []
    return say(
        "warning" if fact.level == "warning" else "note",
        f"{sentence[:1].upper()}{sentence[1:]}.",
        "data.facts in run.json, counted when the data were read",
        Number("pairs", "pairs", number, "pairs"),
        Number("pairs_share", "share of all pairs", number / of, "share"),
    )
