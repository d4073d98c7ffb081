"""Several runs side by side: the same pairs joined by their id, and the run-level numbers of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report import pair_columns
from dyn_probe.report.basis import BASES, basis_of, basis_of_list, completed
from dyn_probe.report.frames import numbers
from dyn_probe.report.overview import OWN, every_line
from dyn_probe.report.ranked import pair_rows
from dyn_probe.report.run_facts import title

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

JOINED: dict[str, str] = {
    "logp_per_token_chosen": "nats/token",
    "logp_per_token_rejected": "nats/token",
    "margin": "nats",
    "log_ratio_margin": "nats/sequence",
    "grad_cosine": "1",
    "step": "step",
}
"""Columns of the joined pairs, each at the pair's last recorded step of that run, and their units; the case comes
beside them, on the one basis that all these rows have."""


@dataclass(frozen=True)
class DeltaLine:
    """One measure at the end of every run, and its difference to the first run."""

    key: str
    name: str
    unit: str
    formula: str
    values: dict[str, float]

    def delta(self, label: str) -> float:
        """Value of a run minus that of the first run."""
        return self.values[label] - next(iter(self.values.values()))


def labelled(traces: Sequence[Trace]) -> dict[str, Trace]:
    """Traces by a short unique name: the folder, with its parent where folders have the same name."""
    names = [title(trace) for trace in traces]
    if len(set(names)) < len(names):
        names = [f"{trace.path.resolve().parent.name}/{name}" for trace, name in zip(traces, names, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    return dict(zip(names, traces, strict=True))


def pair_ids(trace: Trace) -> set[str]:
    """Ids of the pairs that a run has recorded."""
    return set(trace.pairs["pair_id"].dropna())


def joined(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """Pairs that at least two runs share: one row per pair_id, columns (run, column of JOINED or the case), NaN where
    not seen."""
    times = Counter(name for trace in traces.values() for name in pair_ids(trace))
    ids = sorted(name for name, count in times.items() if count > 1)
    shared = {}
    for label, trace in traces.items():
        pairs = completed(trace)
        shared[label] = pair_rows(pairs[pairs["pair_id"].isin(ids)]).set_index("pair_id")
    names = (*JOINED, BASES[basis_of_list(*shared.values())].column)
    frames = {
        label: pd.DataFrame({name: numbers(rows, name) for name in names}, index=rows.index).reindex(ids)
        for label, rows in shared.items()
    }
    return pd.concat(frames, axis=1)


def deltas(traces: Mapping[str, Trace]) -> list[DeltaLine]:
    """Every measure that some run has, at the end of each run (last tenth of its steps)."""
    basis = common_case_basis(traces)
    tables = {label: {line.key: line for line in every_line(trace, basis)} for label, trace in traces.items()}
    keys = dict.fromkeys(key for table in tables.values() for key in table)
    lines = []
    for key in keys:
        known = next(table[key] for table in tables.values() if key in table)
        values = {label: table[key].last if key in table else float("nan") for label, table in tables.items()}
        name = f"{known.name}, by each run's own score" if key in OWN else known.name
        lines.append(DeltaLine(key, name, known.unit, known.formula, values))
    return lines


def common_case_basis(traces: Mapping[str, Trace]) -> str:
    """The basis of cases on which all runs are compared."""
    return basis_of(*(completed(trace) for trace in traces.values()))


def common_basis(traces: Mapping[str, Trace]) -> str:
    """How log-probabilities of all runs can be drawn: `since_reference`, `since_first`, else `per_token`."""
    for name in ("since_reference", "since_first"):
        function = getattr(pair_columns, name)
        if all(np.isfinite(function(trace.pairs, "chosen")).any() for trace in traces.values()):
            return name
    return "per_token"
