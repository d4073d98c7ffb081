"""The comparison of several runs as plain data, for the template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dyn_probe.report.comparing import DeltaLine, deltas
from dyn_probe.report.definitions import definitions
from dyn_probe.report.figures import COMPARISONS
from dyn_probe.report.page_data import Data, stamp, status, value_text, verdict_entry
from dyn_probe.report.run_facts import facts
from dyn_probe.report.side_by_side.quantities import Quantity, quantities
from dyn_probe.report.side_by_side.shared_pairs import shared_cards
from dyn_probe.report.side_by_side.terminal import quantity_texts
from dyn_probe.report.verdicts.comparison import comparison
from dyn_probe.report.verdicts.verdict import percent, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def comparison_data(
    traces: Mapping[str, Trace], held_out: Mapping[str, Any] | None = None, judged: Path | None = None
) -> Data:
    """Everything that the report of several runs says; ``held_out`` and ``judged`` as in ``build_report``."""
    found = comparison(traces)
    return {
        "kind": "comparison",
        "title": " against ".join(traces),
        "runs": [{"label": label, "status": status(trace)} for label, trace in traces.items()],
        "facts": facts_side_by_side(traces),
        "verdicts": [verdict_entry(v) for v in found],
        "side_by_side": [quantity_entry(row) for row in quantities(traces, judged)],
        "shared": shared_cards(traces),
        "held_out": held_out_data(held_out) if held_out else None,
        "deltas": [delta_entry(line) for line in deltas(traces)],
        "figures": [
            {"name": name, "title": row.title, "text": row.text, "missing": ""} for name, row in COMPARISONS.items()
        ],
        "definitions": definitions(*traces.values()),
        **stamp(),
    }


def quantity_entry(row: Quantity) -> Data:
    """One number of every run, as text."""
    unit = "" if row.unit == "share" else row.unit
    return {"key": row.key, "name": row.name, "unit": unit, "formula": row.formula, "texts": quantity_texts(row)}


def held_out_data(found: Mapping[str, Any]) -> Data:
    """A grid's outcome: its sentences, and one row per method with numbers and texts."""
    rows = [
        {
            **row,
            "texts": [
                *(_with_error(row, name, signed) for name in ("chosen", "rejected", "margin")),
                *(_with_error(row, name, percent) for name in ("log_ratio_accuracy", "accuracy")),
            ],
        }
        for row in found["rows"]
    ]
    return {"rows": rows, "says": list(found["says"])}


def _with_error(row: Mapping[str, Any], name: str, text: Callable[[float], str]) -> str:
    """``+1.20 ± 0.31``; without an error where a method has one run."""
    error = row.get(f"{name}_error", np.nan)
    return text(row[name]) + ("" if np.isnan(error) else f" ± {text(error).removeprefix('+')}")


def facts_side_by_side(traces: Mapping[str, Trace]) -> list[Data]:
    """The facts of all runs, one row per label, and whether the runs differ in it."""
    known = [dict(facts(trace)) for trace in traces.values()]
    labels = dict.fromkeys(label for run in known for label in run)
    rows = []
    for label in labels:
        texts = [run.get(label, "–") for run in known]
        rows.append({"label": label, "texts": texts, "differs": len(set(texts)) > 1})
    return rows


def delta_entry(line: DeltaLine) -> Data:
    """One measure of every run with its difference to the first, as text and as numbers."""
    runs = [
        {"label": label, "text": value_text(value, line.unit), "value": value, "delta": line.delta(label),
         "delta_text": _delta_text(line.delta(label), line.unit)}
        for label, value in line.values.items()
    ]  # fmt: skip
    unit = "" if line.unit in ("share", "1") else line.unit
    return {"key": line.key, "name": line.name, "unit": unit, "formula": line.formula, "runs": runs}


def _delta_text(value: float, unit: str) -> str:
    if np.isnan(value):
        return ""
    sign = "+" if value > 0 else "−" if value < 0 else "±"
    if unit == "share":
        return f"{sign}{abs(100 * value):.0f} pp"
    return sign + value_text(abs(value), unit)
