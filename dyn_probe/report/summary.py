"""The run in the terminal: status, start against end, and what happened, as lines with rich markup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape

from dyn_probe.errors import escaped
from dyn_probe.report.changes import span
from dyn_probe.report.first_screen.alarms import alarms
from dyn_probe.report.first_screen.fix_texts import by_table, fix_lines, fixes
from dyn_probe.report.first_screen.headline import confidence, headline
from dyn_probe.report.frames import tenths
from dyn_probe.report.overview import Line, overview
from dyn_probe.report.run_facts import STATUS_WORDS, facts, title
from dyn_probe.report.unfit import naming_runs
from dyn_probe.report.verdicts import TOPICS, Number, Verdict, verdicts, written
from dyn_probe.report.verdicts.generalised import held_out_line

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

MARKS = {"ok": "[green]✓[/]", "note": "[cyan]•[/]", "warning": "[yellow]▲[/]"}
HEADER = ("Model", "Data", "Objective", "Shaping", "β", "Learning rate", "Steps", "Pairs")


def summary_lines(trace: Trace) -> list[str]:
    """Lines with rich markup; all text that comes from the data is escaped."""
    with naming_runs([trace.path]):
        return [*_head(trace), "", *_first(trace), "", *_table(trace), *_verdicts(trace, verdicts(trace))]


def _first(trace: Trace) -> list[str]:
    """Headline, the same on held-out pairs, confidence and fix table: what the report's first screen says."""
    (happened, moved), table = headline(trace), fixes(trace)
    unseen = [f"[bold]{safe(line)}[/]"] if (line := held_out_line(trace)) else []
    first = [f"{MARKS['warning']} [bold]{safe(line)}[/]" for line in alarms(trace)]
    lines = [*first, f"[bold]{safe(happened)}[/] {safe(moved)}", *unseen, f"[dim]{safe(confidence(trace))}[/]", ""]
    if table["none"]:
        return [*lines, safe(table["none"])]
    first_row = table["rows"][0]
    whole = [f"  {safe(first_row['words'])}, to type: {safe(first_row['whole'])}"] if first_row["whole"] else []
    known = [] if table["trained_by_trl"] else [row for row in table["rows"] if row["trl"]]
    trl = [f"  TRL: {escape(row['typed'])} is {safe(row['trl'])}" for row in known]
    return [*lines, *aligned(fix_lines(table)), f"[dim]{safe(table['rule'])}[/]", *whole, *trl]


def safe(text: str) -> str:
    """Text from the data for a terminal: no markup, control characters as escapes."""
    return escape(escaped(text))


def _head(trace: Trace) -> list[str]:
    status = trace.about.status
    colour = "green" if status == "closed" else "yellow"
    known = dict(facts(trace))
    about = " · ".join(f"{label} {known[label]}" for label in HEADER if label in known)
    return [f"[bold]{safe(title(trace))}[/]  [{colour}]{safe(STATUS_WORDS.get(status, status))}[/]", safe(about)]


def _table(trace: Trace) -> list[str]:
    lines = overview(trace)
    if not lines:
        return []
    parts = tenths(trace.pairs)
    heads = ("", "start", "end", "unit")
    if parts:
        heads = ("", span(parts.first_steps), span(parts.last_steps), "unit")
    return aligned([heads, *(_row(line) for line in lines)])


def _row(line: Line) -> tuple[str, str, str, str]:
    values = (
        "" if np.isnan(value) else written(Number("", "", value, "share" if line.unit == "share" else ""), error)
        for value, error in zip((line.first, line.last), line.errors, strict=True)
    )
    return (line.name, *values, "" if line.unit in ("share", "1") else line.unit)  # type: ignore[return-value]


def aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows as text columns: the first and last to the left, those between to the right; the first row dim."""
    rows = list(rows)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        middle = (cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True))
        lines.append(escape("  ".join([row[0].ljust(widths[0]), *middle, row[-1]]).rstrip()))
    return [f"[dim]{lines[0]}[/]", *lines[1:]]


def _verdicts(trace: Trace, found: list[Verdict]) -> list[str]:
    lines, topic = [], ""
    for verdict in found:
        if verdict.topic != topic:
            topic = verdict.topic
            lines += ["", f"[bold]{escape(TOPICS[topic])}[/]"]
        lines.append(f"{MARKS[verdict.level]} {safe(verdict.sentence)}")
    knobs = dict.fromkeys(knob for verdict in found if verdict.level == "warning" for knob in verdict.knobs)
    if knobs:
        lines += ["", "[bold]What you can change[/]", *(f"→ {escape(knob)}" for knob in by_table(trace, knobs))]
    return lines
