"""How far each pair's log-probabilities moved over the run: the one basis for headline, verdicts and tables.

The best available basis is taken, and every sentence names it: the same pairs from the start to the end of the run,
where the end was measured (table `final`); else the same pairs in the first and in the last tenth of the steps; else
the log-ratio to the reference in the last tenth; else different pairs of the two tenths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report import pair_columns
from dyn_probe.report.frames import Floats, Tenths, finite, numbers, tenths

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

LEAST_PAIRS = 5
"""With fewer pairs in both tenths another basis is preferred, if there is one."""


@dataclass(frozen=True)
class Change:
    """Change per token, one value per pair (or the difference of two medians where `paired` is false)."""

    basis: str
    chosen: Floats
    rejected: Floats
    paired: bool
    n: int

    def side(self, name: str) -> Floats:
        """The values of one side."""
        return self.chosen if name == "chosen" else self.rejected


def run_change(trace: Trace) -> Change | None:
    """Change over the run, nats/token: from the start to the end where the end of at least LEAST_PAIRS pairs was
    measured, else by the recorded rows (``change``)."""
    return _to_the_end(trace) or change(trace.pairs)


def start_rows(pairs: pd.DataFrame) -> pd.DataFrame:
    """Each pair's log-probabilities at the start of the run: index pair_id; columns logp_chosen, logp_rejected (nats),
    len_chosen, len_rejected (tokens).

    The reference where that is the starting model, else what the pair's first recorded row says.
    """
    known = pairs.dropna(subset=["pair_id"])
    rows = known.sort_values("step", kind="stable").drop_duplicates("pair_id").set_index("pair_id")
    logp = "ref_logp" if starts_at_reference(pairs) else "logp"
    columns = {f"logp_{side}": numbers(rows, f"{logp}_{side}") for side in pair_columns.SIDES}
    columns |= {f"len_{side}": numbers(rows, f"len_{side}") for side in pair_columns.SIDES}
    return pd.DataFrame(columns, index=rows.index)


def _to_the_end(trace: Trace) -> Change | None:
    start = start_rows(trace.pairs)
    end = trace.final.drop_duplicates("pair_id", keep="last").set_index("pair_id").reindex(start.index)
    columns = {
        side: (numbers(end, f"logp_{side}") - numbers(start, f"logp_{side}")) / numbers(start, f"len_{side}")
        for side in pair_columns.SIDES
    }
    moved = pd.DataFrame(columns).replace([np.inf, -np.inf], np.nan).dropna()
    if len(moved) < LEAST_PAIRS:
        return None
    begun = "before training" if starts_at_reference(trace.pairs) else "each pair's first recorded row"
    basis = f"the same {len(moved)} pairs, from {begun} to the end of the run"
    return Change(basis, moved["chosen"].to_numpy(), moved["rejected"].to_numpy(), True, len(moved))


def change(pairs: pd.DataFrame) -> Change | None:
    """Change over the run, nats/token; None with fewer than two recorded steps and no reference."""
    parts = tenths(pairs)
    same = _same_pairs(pairs, parts) if parts else None
    if same is not None and same.n >= LEAST_PAIRS:
        return same
    return _against_reference(pairs, parts) or same or (_different_pairs(pairs, parts) if parts else None)


def by_pair(pairs: pd.DataFrame, mask: Floats | np.ndarray) -> pd.DataFrame:
    """Mean log-probability per token of each pair over the masked rows: index pair_id, columns by side."""
    rows = pairs[mask]
    columns = {side: pair_columns.per_token(rows, side) for side in pair_columns.SIDES}
    return pd.DataFrame(columns).groupby(rows["pair_id"].to_numpy()).mean()


def _same_pairs(pairs: pd.DataFrame, parts: Tenths) -> Change | None:
    early, late = by_pair(pairs, parts.first), by_pair(pairs, parts.last)
    moved = (late - early).dropna()
    if not len(moved):
        return None
    basis = f"the same {len(moved)} pairs, {spans(parts)}"
    return Change(basis, moved["chosen"].to_numpy(), moved["rejected"].to_numpy(), True, len(moved))


def _against_reference(pairs: pd.DataFrame, parts: Tenths | None) -> Change | None:
    """Only where the reference is the starting model: the log-ratios of the first step are about 0."""
    if parts is None or not starts_at_reference(pairs):
        return None
    late = pairs[parts.last]
    frame = pd.DataFrame({side: pair_columns.since_reference(late, side) for side in pair_columns.SIDES})
    moved = frame.groupby(late["pair_id"].to_numpy()).mean().dropna()
    if not len(moved):
        return None
    basis = f"{len(moved)} pairs of {span(parts.last_steps)} relative to the reference, which is the starting model"
    return Change(basis, moved["chosen"].to_numpy(), moved["rejected"].to_numpy(), True, len(moved))


def starts_at_reference(pairs: pd.DataFrame, tolerance: float = 0.02) -> bool:
    """Whether the first step's log-ratios are below `tolerance` nats/token: the reference is the start."""
    steps = numbers(pairs, "step")
    if not len(steps):
        return False
    first = pairs[steps == steps.min()]
    ratios = finite(np.concatenate([pair_columns.since_reference(first, side) for side in pair_columns.SIDES]))
    return bool(len(ratios)) and float(np.abs(ratios).max()) < tolerance


def _different_pairs(pairs: pd.DataFrame, parts: Tenths) -> Change | None:
    medians = []
    for side in pair_columns.SIDES:
        early, late = (finite(pair_columns.per_token(pairs[mask], side)) for mask in (parts.first, parts.last))
        if not len(early) or not len(late):
            return None
        medians.append(np.array([np.median(late) - np.median(early)]))
    rows = int(parts.first.sum() + parts.last.sum())
    basis = f"medians of different pairs, {rows} rows, {spans(parts)}"
    return Change(basis, medians[0], medians[1], False, rows)


def span(steps: tuple[int, int]) -> str:
    """A range of steps in words."""
    return f"step {steps[0]}" if steps[0] == steps[1] else f"steps {steps[0]}–{steps[1]}"


def step_span(rows: pd.DataFrame) -> str:
    """The steps of some rows in words."""
    steps = numbers(rows, "step")
    return span((int(steps.min()), int(steps.max())))


def spans(parts: Tenths) -> str:
    """Both tenths in words."""
    return f"from {span(parts.first_steps)} to {span(parts.last_steps)}"
