"""The report as plain data: what the template prints, as text, numbers, lists and dicts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from dyn_probe import __version__
from dyn_probe.report.availability import missing, remedy
from dyn_probe.report.changes import span
from dyn_probe.report.definitions import definitions
from dyn_probe.report.figures import FigureRow, figures_for
from dyn_probe.report.first_screen.alarms import alarms
from dyn_probe.report.first_screen.fix_texts import by_table, fixes
from dyn_probe.report.first_screen.headline import confidence, headline
from dyn_probe.report.first_screen.questions import QUESTIONS
from dyn_probe.report.frames import tenths
from dyn_probe.report.interactive.library import page_figures
from dyn_probe.report.overview import Line, overview
from dyn_probe.report.pair_cards import pair_cards
from dyn_probe.report.run_facts import STATUS_WORDS, everything, facts, title
from dyn_probe.report.token_view import token_view
from dyn_probe.report.verdicts import TOPICS, Number, Verdict, verdicts, written
from dyn_probe.report.verdicts.generalised import held_out_line

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

Data = dict[str, Any]


def report_data(trace: Trace) -> Data:
    """Everything that the report of one run says."""
    found = verdicts(trace)
    return {
        "kind": "run",
        "title": title(trace),
        "status": status(trace),
        "facts": [{"label": label, "text": text} for label, text in facts(trace)],
        "manifest": [{"place": place, "text": text} for place, text in everything(trace.manifest)],
        "first": first_screen(trace),
        "topics": topics(found),
        "questions": questions(trace, found),
        "fine": fine(found),
        "knobs": knob_list(trace, found),
        "overview": overview_table(trace),
        "figures": [figure_entry(name, row, trace) for name, row in figures_for(trace).items()],
        "tokens": token_view(trace),
        "interactive": page_figures(trace),
        "ranked": pair_cards(trace),
        "definitions": definitions(trace),
        **stamp(),
    }


def status(trace: Trace) -> Data:
    """How the run ended, for the banner."""
    about = trace.about
    words = STATUS_WORDS.get(about.status, about.status)
    return {"name": about.status, "words": words, "reason": about.reason or "", "closed": about.status == "closed"}


def first_screen(trace: Trace) -> Data:
    """What must be read first, headline, the same on held-out pairs, confidence and fix table."""
    return {
        "alarms": alarms(trace),
        "headline": headline(trace),
        "held_out": held_out_line(trace),
        "confidence": confidence(trace),
        "fixes": fixes(trace),
    }


def questions(trace: Trace, found: list[Verdict]) -> list[Data]:
    """The folds of the page: each with the verdicts that are worth knowing, its worst level and its figures."""
    shown, said = figures_for(trace), topics([verdict for verdict in found if verdict.level != "ok"])
    folds = []
    for row in QUESTIONS:
        own = [topic for topic in said if topic["name"] in row.topics]
        levels = {topic["level"] for topic in own}
        figures = [figure_entry(name, shown[name], trace) for name in row.figures if name in shown]
        level = next((level for level in ("warning", "note") if level in levels), "ok")
        folds.append({"name": row.name, "title": row.title, "level": level, "topics": own, "figures": figures})
    return folds


def fine(found: list[Verdict]) -> list[Data]:
    """The statements that are as they should be."""
    return [verdict_entry(verdict) for verdict in found if verdict.level == "ok"]


def topics(found: list[Verdict]) -> list[Data]:
    """Verdicts by topic, in the order of the report, topics without any left out."""
    groups = {name: [verdict_entry(v) for v in found if v.topic == name] for name in TOPICS}
    return [
        {"name": name, "title": TOPICS[name], "level": worst(group), "verdicts": group}
        for name, group in groups.items()
        if group
    ]


def worst(group: list[Data]) -> str:
    """The most serious level of some verdicts."""
    levels = {entry["level"] for entry in group}
    return next(level for level in ("warning", "note", "ok") if level in levels)


def verdict_entry(verdict: Verdict) -> Data:
    """One verdict with its numbers written out."""
    numbers = [
        {"key": n.key, "name": n.name, "text": written(n), "value": float(n.value), "unit": n.unit}
        for n in verdict.numbers
    ]
    return {
        "level": verdict.level,
        "sentence": verdict.sentence,
        "formula": verdict.formula,
        "numbers": numbers,
        "knobs": list(verdict.knobs),
    }


def knob_list(trace: Trace, found: list[Verdict]) -> list[Data]:
    """Every knob that a warning or note names, with the topics that name it; in the order of the fix table, and what
    that does not have by how often it is named, warnings first."""
    named: dict[str, dict[str, int]] = {}
    for verdict in found:
        for knob in verdict.knobs if verdict.level != "ok" else ():
            named.setdefault(knob, {}).setdefault(TOPICS[verdict.topic], 0)
            named[knob][TOPICS[verdict.topic]] += 10 if verdict.level == "warning" else 1
    order = sorted(named, key=lambda knob: -sum(named[knob].values()))
    return [{"text": knob, "topics": list(named[knob])} for knob in by_table(trace, order)]


def overview_table(trace: Trace) -> Data:
    """Start against end, as text."""
    parts = tenths(trace.pairs)
    heads = [span(parts.first_steps), span(parts.last_steps)] if parts else ["", "only step"]
    return {"heads": heads, "rows": [_line_entry(line) for line in overview(trace)]}


def _line_entry(line: Line) -> Data:
    return {
        "key": line.key,
        "name": line.name,
        "unit": "" if line.unit in ("share", "1") else line.unit,
        "formula": line.formula,
        "first": value_text(line.first, line.unit, line.errors[0]),
        "last": value_text(line.last, line.unit, line.errors[1]),
        "values": [line.first, line.last],
    }


def value_text(value: float, unit: str, error: float = float("nan")) -> str:
    """A value without its unit, which has its own column; shares as percentages; "–" where there is none."""
    return "–" if np.isnan(value) else written(Number("", "", value, "share" if unit == "share" else ""), error)


def figure_entry(name: str, row: FigureRow, trace: Trace) -> Data:
    """Title and texts of a figure; `missing` says what was not recorded."""
    absent = () if row.optional else missing(trace, row.needs)
    lack = "; ".join(dict.fromkeys(remedy(need) for need in absent))
    return {"name": name, "title": row.title, "text": row.text, "missing": lack}


def stamp() -> Data:
    """Which dyn-probe wrote the report, and when (UTC)."""
    return {"version": __version__, "generated": datetime.now(UTC).isoformat(timespec="seconds")}
