"""The numbers by which runs are held against each other, each on the one basis that all of them have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report.basis import BASES, basis_of, case_of, completed
from dyn_probe.report.changes import Change, changes_alike
from dyn_probe.report.frames import finite, median, share
from dyn_probe.report.outputs.judged import Judged, judged_runs
from dyn_probe.report.side_by_side.held_out_pairs import HeldOutChange, held_out_change
from dyn_probe.report.side_by_side.kl_price import at_one_kl
from dyn_probe.trace.schema import CASES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


@dataclass(frozen=True)
class Quantity:
    """One number of every run that is compared: key for programs, name, unit, formula, value by label of the run."""

    key: str
    name: str
    unit: str
    formula: str
    values: dict[str, float]


@dataclass(frozen=True)
class Moves:
    """How far the pairs of several runs moved over the same stretch of each.

    Args:
        changes: label of a run → change of chosen and of rejected (nats/token).
        shared: label → the same by pair_id (columns chosen, rejected), only the pairs that all runs have, in one
            order; empty where there is none.
    """

    changes: dict[str, Change]
    shared: dict[str, pd.DataFrame]

    @property
    def paired(self) -> bool:
        """Whether the runs have pairs in common."""
        return self.pairs > 0

    @property
    def pairs(self) -> int:
        """How many pairs all runs have in common."""
        return len(next(iter(self.shared.values())))

    def side(self, label: str, name: str) -> np.ndarray:
        """The changes of one side [pairs]: of the shared pairs where there are any, else of the run's own."""
        return self.shared[label][name].to_numpy() if self.paired else self.changes[label].side(name)

    def margin(self, label: str) -> np.ndarray:
        """Growth of the margin per token: change of chosen less that of rejected [pairs]."""
        return np.asarray(self.side(label, "chosen") - self.side(label, "rejected"))

    @property
    def basis(self) -> str:
        """Over what the changes are measured, in words."""
        first, *others = dict.fromkeys(change.basis for change in self.changes.values())
        stretch = first if not others else "; ".join(f"{label}: {c.basis}" for label, c in self.changes.items())
        return f"over the {self.pairs} pairs that all have; {stretch}" if self.paired else stretch


def moves(traces: Mapping[str, Trace]) -> Moves | None:
    """The changes of all runs over the best stretch that all of them have; None where there is none."""
    found = changes_alike(list(traces.values()))
    if not found:
        return None
    changes = dict(zip(traces, found, strict=True))
    frames = {label: by_pair(change) for label, change in changes.items()}
    ids = sorted(set.intersection(*(set(frame.index) for frame in frames.values())))
    return Moves(changes, {label: frame.loc[ids] for label, frame in frames.items()})


def by_pair(change: Change) -> pd.DataFrame:
    """A change by pair_id, columns chosen and rejected (nats/token); no rows where it is not by pair."""
    number = len(change.ids)
    values = {"chosen": change.chosen[:number], "rejected": change.rejected[:number]}
    return pd.DataFrame(values, index=pd.Index(change.ids, name="pair_id", dtype=object))


def quantities(traces: Mapping[str, Trace], judged: Path | None = None) -> list[Quantity]:
    """The numbers that are compared, in the order of the table; only those that some run has.

    Args:
        judged: a file of what a judge said of the runs' outputs (``outputs.judged``).

    Raises:
        BadInput: that file cannot be read, or has nothing on a run.
    """
    of_judge = [] if judged is None else _judged(judged_runs(judged, list(traces)))
    return [*_moved(moves(traces)), *_cases(traces), *_held_out(traces), *_margin_at_kl(traces), *of_judge]


JUDGED = {
    "win_rate": ("win rate under the judge", "share", "share of prompts at which the judge prefers the run's output"),
    "error": ("standard error of the win rate", "share", "over prompts"),
    "length_controlled": ("win rate, length controlled", "share", "as the judge's file has it"),
    "length": ("mean length of outputs", "characters", "over prompts"),
}
"""Field of ``Judged`` → name, unit, formula."""


def _judged(found: Mapping[str, Judged]) -> list[Quantity]:
    rows = [
        Quantity(f"judged_{key}", name, unit, formula, {label: getattr(one, key) for label, one in found.items()})
        for key, (name, unit, formula) in JUDGED.items()
    ]
    return [row for row in rows if np.isfinite(list(row.values.values())).any()]


def _moved(found: Moves | None) -> list[Quantity]:
    if found is None:
        return []
    formulas = {"chosen": "Δ(a/n_w)", "rejected": "Δ(b/n_l)"}
    rows = [
        Quantity(
            f"change_{side}", f"change of {side}", "nats/token", f"median of {form}; {found.basis}",
            {label: median(found.side(label, side)) for label in found.changes},
        )
        for side, form in formulas.items()
    ]  # fmt: skip
    grown = {label: median(found.margin(label)) for label in found.changes}
    formula = f"median of Δ(a/n_w) − Δ(b/n_l); {found.basis}"
    return [*rows, Quantity("margin_growth", "growth of the margin", "nats/token", formula, grown)]


def _cases(traces: Mapping[str, Trace]) -> list[Quantity]:
    """Shares of the cases over all recorded rows, on the one basis that all runs have."""
    pairs = {label: completed(trace) for label, trace in traces.items()}
    basis = BASES[basis_of(*pairs.values())]
    known = {label: finite(case_of(rows, basis.name)) for label, rows in pairs.items()}
    if not any(map(len, known.values())):
        return []
    return [
        Quantity(
            f"rows_in_case_{number}", f"case {number}: {name}, {basis.name}", "share",
            f"share of all recorded rows; {basis.formula}",
            {label: share(case == number) for label, case in known.items()},
        )
        for number, name in CASES.items()
    ]  # fmt: skip


def _held_out(traces: Mapping[str, Trace]) -> list[Quantity]:
    found = {label: held_out_change(trace) for label, trace in traces.items()}
    if not any(found.values()):
        return []
    rows = {
        "held_out_chosen": ("held-out: change of chosen", "mean a, last evaluation − first"),
        "held_out_rejected": ("held-out: change of rejected", "mean b, last evaluation − first"),
        "held_out_margin": ("held-out: growth of a − b", "mean a − b, last evaluation − first"),
    }
    return [
        Quantity(key, name, "nats/sequence", formula, {label: _of(one, key) for label, one in found.items()})
        for key, (name, formula) in rows.items()
    ]


def _margin_at_kl(traces: Mapping[str, Trace]) -> list[Quantity]:
    found = at_one_kl(traces)
    if found is None:
        return []
    formula = f"held-out log-ratio margin where the KL to the reference first reaches {found.kl:.3g} nats/token"
    return [Quantity("margin_at_kl", "held-out margin at one KL", "nats/sequence", formula, found.margins)]


def _of(found: HeldOutChange | None, key: str) -> float:
    return float("nan") if found is None else getattr(found, key.removeprefix("held_out_"))
