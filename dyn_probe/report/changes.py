"""How far each pair's log-probabilities moved over the run: the one basis for headline, verdicts and tables.

The best available basis is taken, and every sentence names it: the same pairs from the start to the end of the run,
where the end was measured (table `final`); else the same pairs in the first and in the last tenth of the steps; else
the log-ratio to the reference in the last tenth; else different pairs of the two tenths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report import pair_columns
from dyn_probe.report.frames import Floats, Tenths, finite, numbers, once, recorded, tenths

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
    ids: tuple[str, ...] = ()
    """The pairs, in the order of the values; empty where `paired` is false."""

    def side(self, name: str) -> Floats:
        """The values of one side."""
        return self.chosen if name == "chosen" else self.rejected


@once
def run_change(trace: Trace) -> Change | None:
    """Change over the run, nats/token: from the start to the end where the end of at least LEAST_PAIRS pairs was
    measured, else by the recorded rows (``change``)."""
    return _to_the_end(trace) or change(trace.pairs)


def start_rows(pairs: pd.DataFrame) -> pd.DataFrame:
    """Each pair's log-probabilities at the start of the run: index pair_id; columns logp_chosen, logp_rejected (nats),
    len_chosen, len_rejected (tokens).

    The reference where that is the starting model, else what the pair's first recorded row says.
    """
    return first_recorded(pairs, "ref_logp" if starts_at_reference(pairs) else "logp")


def first_recorded(pairs: pd.DataFrame, logp: str) -> pd.DataFrame:
    """The columns `logp` or `ref_logp`, and lengths, of each pair's first recorded row; as ``start_rows``."""
    known = pairs.dropna(subset=["pair_id"])
    rows = known.sort_values("step", kind="stable").drop_duplicates("pair_id").set_index("pair_id")
    columns = {f"logp_{side}": numbers(rows, f"{logp}_{side}") for side in pair_columns.SIDES}
    columns |= {f"len_{side}": numbers(rows, f"len_{side}") for side in pair_columns.SIDES}
    return pd.DataFrame(columns, index=rows.index)


def changes_alike(traces: Sequence[Trace]) -> list[Change]:
    """The change of every run over the best stretch that all of them have, nats/token; empty where there is none.

    Stretches, best first: from before training to the end, from each pair's first recorded row to the end, from the
    first to the last tenth of the steps, against a reference that is the start, by different pairs.
    """
    for measure in STRETCHES:
        found = [measure(trace) for trace in traces]
        if all(one is not None and (not one.paired or one.n >= LEAST_PAIRS) for one in found):
            return [one for one in found if one is not None]
    return []


@once
def run_start(trace: Trace) -> pd.DataFrame:
    """``start_rows`` of a run: where the table `final` has the start (runs without a reference), from before training,
    NaN in the pairs that it lacks."""
    start = start_rows(trace.pairs)
    if recorded(trace.final, "start_logp_chosen"):
        ends = _ends(trace, start)
        start = start.assign(**{f"logp_{side}": numbers(ends, f"start_logp_{side}") for side in pair_columns.SIDES})
    return start


@once
def starts_before_training(trace: Trace) -> bool:
    """Whether ``run_start`` is the model before training, rather than each pair's first recorded row."""
    return starts_at_reference(trace.pairs) or recorded(trace.final, "start_logp_chosen")


def _ends(trace: Trace, start: pd.DataFrame) -> pd.DataFrame:
    """The table `final` in the order of the pairs of `start`."""
    return trace.final.drop_duplicates("pair_id", keep="last").set_index("pair_id").reindex(start.index)


def _to_the_end(trace: Trace, start: pd.DataFrame | None = None) -> Change | None:
    before = start is None and starts_before_training(trace)
    begun = "before training" if before else "each pair's first recorded row"
    start = run_start(trace) if start is None else start
    end = _ends(trace, start)
    columns = {
        side: (numbers(end, f"logp_{side}") - numbers(start, f"logp_{side}")) / numbers(start, f"len_{side}")
        for side in pair_columns.SIDES
    }
    moved = pd.DataFrame(columns, index=start.index).replace([np.inf, -np.inf], np.nan).dropna()
    if len(moved) < LEAST_PAIRS:
        return None
    return _paired(moved, f"the same {len(moved)} pairs, from {begun} to the end of the run")


def _paired(moved: pd.DataFrame, basis: str) -> Change:
    """A change by pair: index pair_id, columns by side (nats/token)."""
    chosen, rejected = (moved[side].to_numpy(dtype=np.float64) for side in pair_columns.SIDES)
    return Change(basis, chosen, rejected, True, len(moved), tuple(moved.index))


def _from_the_start(trace: Trace) -> Change | None:
    return _to_the_end(trace) if starts_before_training(trace) else None


def _from_the_first_row(trace: Trace) -> Change | None:
    return _to_the_end(trace, first_recorded(trace.pairs, "logp"))


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
    return _paired(moved, f"the same {len(moved)} pairs, {spans(parts)}")


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
    return _paired(moved, basis)


def starts_at_reference(pairs: pd.DataFrame, tolerance: float = 0.02) -> bool:
    """Whether the first step's log-ratios are below `tolerance` nats/token: the reference is the start."""
    steps = numbers(pairs, "step")
    if not len(steps):
        return False
    first = pairs[steps == steps.min()]
    ratios = finite(np.concatenate([pair_columns.since_reference(first, side) for side in pair_columns.SIDES]))
    return bool(len(ratios)) and float(np.abs(ratios).max()) < tolerance


def _of_tenths(measure: Callable[[pd.DataFrame, Tenths], Change | None]) -> Callable[[Trace], Change | None]:
    """A measure of the first and the last tenth; nothing where a run has no two steps."""
    return lambda trace: None if (parts := tenths(trace.pairs)) is None else measure(trace.pairs, parts)


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


STRETCHES: tuple[Callable[[Trace], Change | None], ...] = (
    _from_the_start,
    _from_the_first_row,
    _of_tenths(_same_pairs),
    lambda trace: _against_reference(trace.pairs, tenths(trace.pairs)),
    _of_tenths(_different_pairs),
)
"""Over what a change can be measured, best first; ``changes_alike`` takes the first that all runs have."""


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
