"""Several runs in the terminal: the verdict, its numbers side by side, the pairs that differ most."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.errors import escaped
from dyn_probe.report.page_data import value_text
from dyn_probe.report.side_by_side.quantities import Quantity, quantities
from dyn_probe.report.side_by_side.shared_pairs import shared_pairs
from dyn_probe.report.summary import MARKS, aligned, safe
from dyn_probe.report.unfit import naming_runs
from dyn_probe.report.verdicts.comparison import comparison
from dyn_probe.report.verdicts.verdict import signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

PAIRS = 5
LONGEST = 60
"""Characters of a prompt that a line shows."""


def comparison_lines(traces: Mapping[str, Trace], judged: Path | None = None) -> list[str]:
    """Lines with rich markup; all text that comes from the data is escaped. ``judged`` as for ``quantities``."""
    with naming_runs([trace.path for trace in traces.values()]):
        first, *more = comparison(traces)
        said = [f"{MARKS[one.level]} {safe(one.sentence)}" for one in more]
        return [f"[bold]{safe(first.sentence)}[/]", "", *_table(traces, judged), "", *_pairs(traces), *said]


def _table(traces: Mapping[str, Trace], judged: Path | None) -> list[str]:
    rows = quantities(traces, judged)
    if not rows:
        return []
    heads = ("", *map(safe, traces), "unit")
    return aligned([heads, *(_row(row) for row in rows)])


def _row(row: Quantity) -> tuple[str, ...]:
    return (row.name, *quantity_texts(row), "" if row.unit == "share" else row.unit)


def quantity_texts(row: Quantity) -> list[str]:
    """The value of every run as text: two digits and a sign, shares as percentages, – where there is none."""
    if row.unit == "share":
        return [value_text(value, "share") for value in row.values.values()]
    if row.unit == "characters":
        return ["–" if np.isnan(value) else f"{value:.0f}" for value in row.values.values()]
    return ["–" if np.isnan(value) else signed(value, 2) for value in row.values.values()]


def _pairs(traces: Mapping[str, Trace]) -> list[str]:
    table = shared_pairs(traces, PAIRS)
    if not len(table):
        return []
    heads = ("pairs that differ most", *(f"chosen, {label}" for label in traces), "prompt")
    rows = [
        (row["pair_id"], *(signed(row[f"{label}: chosen"], 2) for label in traces), _short(row["prompt"]))
        for row in table.to_dict("records")
    ]
    return [*aligned([heads, *rows]), ""]


def _short(text: object) -> str:
    words = " ".join(text.split()) if isinstance(text, str) else ""
    shown = escaped(words)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"
