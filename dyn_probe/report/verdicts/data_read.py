"""What is to be known about the data that were trained on: rows left out, rows cut, tokens that are not as one thinks.

The sentences about tokens stand in ``run.json``; whoever recorded the run wrote them there.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from dyn_probe.report.facts import look_up
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, percent, say

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

LOUD = 0.1
"""Share of left-out rows from which it is a warning."""
SHOWN = 3
"""Reasons that are named."""


def left_out(trace: Trace) -> list[Verdict]:
    """Rows of the data that were left out, by reason."""
    rows = [row for row in trace.manifest.get("skipped_rows") or [] if isinstance(row, dict)]
    if not rows:
        return []
    reasons = Counter(str(row.get("reason", "no reason given")) for row in rows)
    words = "; ".join(f"{reason} ({number:,})" for reason, number in reasons.most_common(SHOWN))
    more = "; …" if len(reasons) > SHOWN else ""
    every = _whole(look_up(trace.manifest, "data.rows")) or 0
    unexpected = len(rows) - (_whole(look_up(trace.manifest, "data.left_out_by_design")) or 0)
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
    facts = look_up(trace.manifest, "data.facts")
    found = [fact for fact in (facts.values() if isinstance(facts, dict) else ()) if isinstance(fact, dict)]
    return [verdict for fact in found for verdict in _fact(fact)]


def _fact(fact: dict[str, Any]) -> list[Verdict]:
    """A fact of run.json as a verdict; nothing where it has no sentence."""
    sentence, number, of = str(fact.get("sentence") or ""), _whole(fact.get("count")), _whole(fact.get("of"))
    if not sentence or number is None or not of:
        return []
    return say(
        "warning" if fact.get("level") == "warning" else "note",
        f"{sentence[:1].upper()}{sentence[1:]}.",
        "data.facts in run.json, counted when the data were read",
        Number("pairs", "pairs", number, "pairs"),
        Number("pairs_share", "share of all pairs", number / of, "share"),
    )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
