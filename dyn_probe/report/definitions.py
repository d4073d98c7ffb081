"""What every number means: unit and formula of each recorded column and of each derived number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dyn_probe.report.frames import finite, recorded
from dyn_probe.report.pair_columns import DERIVED
from dyn_probe.report.ranked import RUN_NUMBERS
from dyn_probe.trace.schema import CASES, TABLES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

SHOWN = ("pairs", "pushes", "final", "steps", "layers", "mass")


SIGNS = "realised, along the optimizer's step, or of a plain step on the pair alone"


def definitions(*traces: Trace) -> list[dict[str, str]]:
    """Name, table, unit and meaning of all numbers that at least one of the traces holds."""
    rows = []
    for table in SHOWN:
        for column in TABLES[table].columns:
            if any(recorded(getattr(trace, table), column.name) for trace in traces):
                rows.append(_row(column.name, table, column.unit, column.meaning))
    for name, derived in DERIVED.items():
        if any(len(finite(derived.compute(trace.pairs))) for trace in traces):
            rows.append(_row(name, "derived from pairs", derived.unit, derived.meaning))
    rows += [_row(name, "derived from final or pushes", *row) for name, row in RUN_NUMBERS.items()]
    cases = "; ".join(f"{number}: {meaning}" for number, meaning in CASES.items())
    return [
        *rows,
        _row(
            "cases",
            "pairs",
            "",
            f"{cases} (by the signs of Δa and Δb: {SIGNS})",
        ),
    ]


def _row(name: str, table: str, unit: str, meaning: str) -> dict[str, str]:
    return {"name": name, "table": table, "unit": "" if unit == "1" else unit, "meaning": meaning}
