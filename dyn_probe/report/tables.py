"""The report's tables as rows for CSV files: verdicts, numbers, curves, layers, ranked pairs, definitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from dyn_probe.errors import BadInput
from dyn_probe.report.basis import completed
from dyn_probe.report.by_layer import cosine_parts
from dyn_probe.report.comparing import joined
from dyn_probe.report.export.cells import csv_bytes
from dyn_probe.report.frames import last_tenth, recorded, step_bins
from dyn_probe.report.overview import measures
from dyn_probe.report.ranked import ranked_pairs
from dyn_probe.report.side_by_side.shared_pairs import shared_pairs

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

MOST_PAIRS = 10_000


def run_tables(trace: Trace, data: Mapping[str, Any]) -> dict[str, bytes]:
    """File name → CSV, for one run; tables without rows are left out."""
    tables: dict[str, Any] = {
        "verdicts": [row for topic in data["topics"] for row in verdict_rows(topic["title"], topic["verdicts"])],
        "start_and_end": overview_rows(data),
        "curves": curve_rows(trace),
        "layers": layer_rows(trace),
        "ranked_pairs": pair_table(trace),
        "definitions": data["definitions"],
    }
    return {f"tables/{name}.csv": csv_bytes(rows) for name, rows in tables.items() if len(rows)}


def comparison_tables(traces: Mapping[str, Trace], data: Mapping[str, Any]) -> dict[str, bytes]:
    """File name → CSV, for several runs."""
    tables: dict[str, Any] = {
        "verdicts": verdict_rows("comparison", data["verdicts"]),
        "held_out": held_out_rows(data),
        "differences": delta_rows(data),
        "same_pairs": flat_joined(traces),
        "pairs_that_differ": shared_pairs(traces, MOST_PAIRS),
        "definitions": data["definitions"],
    }
    return {f"tables/{name}.csv": csv_bytes(rows) for name, rows in tables.items() if len(rows)}


def verdict_rows(topic: str, verdicts: list[dict[str, Any]]) -> list[dict[str, object]]:
    """One row per number of a verdict; a verdict without numbers has one row."""
    return [
        {
            "topic": topic,
            "level": verdict["level"],
            "sentence": verdict["sentence"],
            "key": number["key"],
            "number": number["name"],
            "value": number["value"],
            "unit": number["unit"],
            "formula": verdict["formula"],
        }
        for verdict in verdicts
        for number in verdict["numbers"] or [{"key": "", "name": "", "value": "", "unit": ""}]
    ]


def overview_rows(data: Mapping[str, Any]) -> list[dict[str, object]]:
    """The measures at the start and at the end."""
    return [
        {
            "key": row["key"],
            "name": row["name"],
            "unit": row["unit"],
            "first": first,
            "last": last,
            "formula": row["formula"],
        }
        for row in data["overview"]["rows"]
        for first, last in [row["values"]]
    ]


def delta_rows(data: Mapping[str, Any]) -> list[dict[str, object]]:
    """The measures of every run, each with its difference to the first run."""
    return [
        {
            "key": line["key"],
            "name": line["name"],
            "unit": line["unit"],
            "run": run["label"],
            "value": run["value"],
            "difference": run["delta"],
        }
        for line in data["deltas"]
        for run in line["runs"]
    ]


def held_out_rows(data: Mapping[str, Any]) -> list[dict[str, object]]:
    """A grid's outcome in numbers, one row per method; empty where the runs are no grid's."""
    rows = data["held_out"]["rows"] if data["held_out"] else []
    return [{name: value for name, value in row.items() if name != "texts"} for row in rows]


def curve_rows(trace: Trace) -> list[dict[str, object]]:
    """Every measure of the run in every bin of steps: what the figures draw, in numbers."""
    pairs = completed(trace)
    bins = step_bins(pairs)
    rows = []
    for measure in measures(pairs):
        for place, part in enumerate(bins.slices(measure.values(pairs))):
            if len(part):
                steps = {"first_step": int(bins.low[place]), "last_step": int(bins.high[place])}
                value = {"value": measure.summary(part), "rows": len(part)}
                rows.append({"key": measure.key, "measure": measure.name, "unit": measure.unit, **steps, **value})
    return rows


def layer_rows(trace: Trace) -> list[dict[str, object]]:
    """Each layer's part of the mean cosine in the last tenth of the steps, input to output."""
    if not recorded(trace.layers, "grad_inner"):
        return []
    return [{"layer": name, "part_of_cosine": value} for name, value in cosine_parts(last_tenth(trace.layers)).items()]


def pair_table(trace: Trace) -> pd.DataFrame:
    """The ranked pairs with all numbers and texts, MOST_PAIRS at most; empty where none can be ranked."""
    try:
        return ranked_pairs(trace, top=MOST_PAIRS)
    except BadInput:
        return pd.DataFrame()


def flat_joined(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """The joined pairs with one header line: pair_id, then "run: column"."""
    table = joined(traces)
    flat = {f"{run}: {column}": table[run][column] for run in traces for column in table[run].columns}
    return pd.DataFrame(flat).rename_axis("pair_id").reset_index()
