"""Ranked pairs: which pairs fall furthest, with their numbers and their text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.errors import BadInput, unknown
from dyn_probe.report import pair_columns
from dyn_probe.report.agreement import spearman
from dyn_probe.report.basis import BASES, basis_of_list, completed
from dyn_probe.report.changes import run_start
from dyn_probe.report.first_screen.trouble import trouble
from dyn_probe.report.frames import Floats, finite, numbers, once
from dyn_probe.report.push_parts import of_side
from dyn_probe.report.unfit import naming_runs

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


@dataclass(frozen=True)
class Ranking:
    """One way to rank: the column, which end comes first, and what that means."""

    column: str
    largest_first: bool
    meaning: str


RANKINGS: dict[str, Ranking] = {
    "run": Ranking(
        "run_change_chosen",
        False,
        "largest measured fall of chosen per token, from the start of the run to its end",
    ),
    "fall": Ranking(
        "recorded_change_chosen", False, "largest measured fall of chosen per token, over its recorded rows"
    ),
    "pushes": Ranking(
        "pushed_chosen",
        False,
        "largest fall of chosen per token by its pushes: the mean over its recorded rows, times the steps from the "
        "first of them to the end (first order, the optimizer's steps)",
    ),
    "rejected": Ranking(
        "run_change_rejected",
        True,
        "largest measured rise of rejected per token, from the start of the run to its end",
    ),
    "reference": Ranking("since_reference_chosen", False, "chosen furthest below the reference, per token"),
    "realised": Ranking("realised_delta_chosen", False, "largest fall of chosen in one update"),
    "update": Ranking(
        "update_delta_chosen", False, "largest fall of chosen along the optimizer's update (first order)"
    ),
    "batch": Ranking("batch_delta_chosen", False, "largest predicted fall of chosen, from the whole batch"),
    "predicted": Ranking("predicted_delta_chosen", False, "largest predicted fall of chosen, from the pair alone"),
    "excess": Ranking(
        "excess", True, "⟨g_w,g_l⟩ furthest above (d_w/d_l)‖g_w‖²: the condition of chosen most violated"
    ),
    "cosine": Ranking("grad_cosine", True, "most aligned gradients"),
    "inner": Ranking("grad_inner", True, "largest ⟨g_w,g_l⟩"),
    "ches": Ranking(
        "ches",
        True,
        "highest similarity of hidden states (CHES): ⟨Σ_t h_w, Σ_t h_l⟩ − ‖Σ_t h_w‖² of what enters the head",
    ),
    "ches-normalised": Ranking("ches_normalised", True, "highest similarity of hidden states, with means for sums"),
    "edit_distance": Ranking("edit_distance", False, "most alike responses: smallest edit distance of their tokens"),
    "gate": Ranking("gate", False, "most closed gate: the smallest factor on the rejected contribution"),
    "margin": Ranking("margin", False, "smallest margin, by what the objective compares"),
    "norm": Ranking("pair_grad_norm", True, "largest gradient of the pair's loss"),
    "loss": Ranking("loss", True, "largest loss"),
}
"""Name → ranking; `dyn-probe pairs --by` takes these names."""

PREFERRED = ("run", "fall", "reference", "pushes", "update", "predicted", "excess", "margin")
"""From what was measured to what was only predicted: the first that ENOUGH of the pairs have is taken by default;
`rejected` where that is the run's trouble."""
MEASURED = ("run", "fall", "rejected", "reference", "margin")
"""Those of PREFERRED that rank by a measured change rather than by a first-order prediction."""
SIMILARITIES = ("ches", "ches-normalised")
"""Rankings by hidden states alone, which stand for gradients."""
EXACT = ("excess", "run", "fall")
"""What they are compared with: the condition by the gradients of the whole model, and measured changes."""
ENOUGH = 0.5
"""Share of the pairs that must have a ranking's number."""

COLUMNS = (
    "pair_id", "step", "rows", "case_realised", "case_update", "case_plain", "excess", "grad_inner", "grad_cosine",
    "ches", "ches_normalised", "grad_norm_chosen",
    "grad_norm_rejected", "pull_chosen", "pull_rejected", "predicted_delta_chosen", "predicted_delta_rejected",
    "batch_delta_chosen", "batch_delta_rejected", "update_delta_chosen", "update_delta_rejected",
    "realised_delta_chosen", "realised_delta_rejected", "run_change_chosen", "run_change_rejected",
    "recorded_change_chosen", "recorded_change_rejected", "pushed_chosen", "pushed_rejected",
    "since_first_chosen", "since_first_rejected", "since_reference_chosen", "since_reference_rejected", "logp_chosen",
    "logp_rejected", "len_chosen", "len_rejected", "score_chosen", "score_rejected", "margin", "log_ratio_margin",
    "loss", "pair_grad_norm", "edit_distance", "shared_prefix", "gate",
    "gate_statistic", "prompt", "chosen", "rejected", "source",
)  # fmt: skip
"""Columns of the result: those of the trace, derived ones (DERIVED), and the texts."""


def ranked_pairs(trace: Trace, by: str | None = None, top: int | None = 20, step: int | None = None) -> pd.DataFrame:
    """The pairs in order, one row each, at their last recorded step (or at `step`).

    Args:
        trace: a recorded run.
        by: a name of RANKINGS; by default that of ``chosen_ranking``: measured falls where they were recorded.
        top: how many pairs, None for all.
        step: only the rows of this step.

    Raises:
        BadInput: an unknown ranking, one whose numbers were not recorded, or a step without rows.
    """
    with naming_runs([trace.path]):
        name, rows = chosen_ranking(trace, by), run_rows(trace, step)
        order = np.argsort(-_key(rows, name), kind="stable")  # NaN comes last
        chosen = rows.iloc[order[:top]]
        texts = trace.examples.drop_duplicates("pair_id")
        return chosen.merge(texts, on="pair_id", how="left").reindex(columns=list(COLUMNS))


def pair_rows(pairs: pd.DataFrame, step: int | None = None) -> pd.DataFrame:
    """One row per pair: its last recorded (or that of `step`), with derived columns and its count of `rows`."""
    known = pairs[pairs["pair_id"].notna()]
    steps = numbers(known, "step")
    if step is not None and not (steps == step).any():
        recorded_steps = np.unique(steps)
        near = recorded_steps[np.argsort(np.abs(recorded_steps - step))[:3]].astype(int)
        raise BadInput(
            f"step {step} was not recorded; the nearest recorded steps are {', '.join(map(str, sorted(near)))}"
        )
    table = known.assign(
        rows=known.groupby("pair_id")["pair_id"].transform("size"),
        **{name: row.compute(known) for name, row in pair_columns.DERIVED.items()},
    )
    table = table if step is None else table[steps == step]
    return table.sort_values("step", kind="stable").drop_duplicates("pair_id", keep="last")


RUN_NUMBERS: dict[str, tuple[str, str]] = {
    **{
        f"run_change_{side}": (
            "nats/token",
            f"change of {form} from the start of the run (the reference where that is the starting model, else the "
            "pair's first recorded row) to its end (table final)",
        )
        for side, form in zip(pair_columns.SIDES, ("a/n_w", "b/n_l"), strict=True)
    },
    **{
        f"pushed_{side}": (
            "nats/token",
            f"mean of total of the table pushes over the pair's recorded rows, times the steps from the first of them "
            f"to the end of the run, divided by {length}; without pushes, of update_delta_{side}",
        )
        for side, length in zip(pair_columns.SIDES, ("n_w", "n_l"), strict=True)
    },
}
"""Number of a pair that needs more than the table `pairs` → its unit and meaning."""


@once
def run_rows(trace: Trace, step: int | None = None) -> pd.DataFrame:
    """`pair_rows` of a trace with the cases of every basis, what the end of the run says, and what the pushes say."""
    rows = pair_rows(completed(trace), step)
    found = {f"run_change_{side}": run_change(trace, rows, side) for side in pair_columns.SIDES}
    found |= {f"pushed_{side}": pushed(trace, rows, side) for side in pair_columns.SIDES}
    return rows.assign(**found)


def run_change(trace: Trace, rows: pd.DataFrame, side: str) -> Floats:
    """Measured change per token of each row's pair, from the start of the run (``run_start``) to the table `final`;
    nats/token."""
    name, start = f"logp_{side}", run_start(trace)
    end = trace.final.drop_duplicates("pair_id", keep="last").set_index("pair_id")
    first, last = (numbers(frame.reindex(rows["pair_id"]), name) for frame in (start, end))
    return (last - first) / numbers(rows, f"len_{side}")


def pushed(trace: Trace, rows: pd.DataFrame, side: str) -> Floats:
    """What the pushes say of each row's response over the run: its mean total push, times the number of steps from its
    first recorded row to the end, per token; without pushes, of the first-order changes along the optimizer's step;
    nats/token. NaN where there are none.

    The mean stands for the steps in which the pair was not recorded: a sum would rank by how often that was.
    """
    pushes = of_side(trace, side)
    end = float(np.max([finite(numbers(frame, "step")).max(initial=0.0) for frame in (trace.steps, trace.pairs)]))
    found = _over_the_run(pushes, "total", end)
    if found.empty:
        found = _over_the_run(trace.pairs, f"update_delta_{side}", end)
    return found.reindex(rows["pair_id"]).to_numpy(dtype=np.float64) / numbers(rows, f"len_{side}")


def _over_the_run(frame: pd.DataFrame, column: str, end: float) -> pd.Series:
    """Mean of a column's known values by pair, times the steps from the first of them to the end."""
    known = frame.assign(value=numbers(frame, column), at=numbers(frame, "step")).dropna(subset=["value", "pair_id"])
    by_pair = known.groupby("pair_id")
    return by_pair["value"].mean() * (end - by_pair["at"].min() + 1)


def shown_case(found: pd.DataFrame) -> str:
    """The column of cases that a list of pairs shows: of the one basis that every pair of the list has."""
    return BASES[basis_of_list(found)].column


def available(trace: Trace) -> list[str]:
    """Names of the rankings whose numbers this trace has."""
    return [name for name, part in covered(trace).items() if part > 0]


def covered(trace: Trace) -> dict[str, float]:
    """Name of each ranking → share of the pairs that have its number at their last recorded row."""
    rows = run_rows(trace)
    shares = {
        name: np.isfinite(numbers(rows, row.column)).mean() if len(rows) else 0.0 for name, row in RANKINGS.items()
    }
    return {name: float(part) for name, part in shares.items()}


def chosen_ranking(trace: Trace, by: str | None = None) -> str:
    """Name of the ranking: `by` if it can be used, else the first of PREFERRED that ENOUGH of the pairs have (failing
    that, the one that most of them have)."""
    if by is not None and by not in RANKINGS:
        raise BadInput(unknown("ranking", by, RANKINGS))
    part = covered(trace)
    there = [name for name in RANKINGS if part[name] > 0]
    if by is not None and by not in there:
        have = f"choose one of: {', '.join(there)}" if there else "it has no pair numbers at all"
        raise BadInput(f"this trace did not record what a ranking by {by} needs; {have}")
    if by is not None:
        return by
    if trouble(trace) == "rejected" and part["rejected"] >= ENOUGH:
        return "rejected"
    names = [name for name in PREFERRED if part[name] > 0]
    if not names:
        raise BadInput("this trace has no rows by which pairs could be ranked; record a run with pairs")
    return next((name for name in names if part[name] >= ENOUGH), max(names, key=lambda name: part[name]))


def ranking_words(trace: Trace, by: str | None = None) -> str:
    """What the pairs are ranked by, in words; and where no measured change was recorded, that this is why."""
    name = chosen_ranking(trace, by)
    fallback = by is None and name not in MEASURED
    lack = "; no measured change was recorded (record with --realised, or let pairs recur)" if fallback else ""
    found = agreements(trace, name) if name in SIMILARITIES else {}
    agree = "; ".join(f"{other} {rho:+.2f} ({n} pairs)" for other, (rho, n) in found.items()).replace("-", "−")
    return f"{name}: {RANKINGS[name].meaning}{lack}" + (f"; rank correlation with {agree}" if agree else "")


def agreements(trace: Trace, name: str) -> dict[str, tuple[float, int]]:
    """Ranking that is exact or measured → Spearman correlation of a ranking with it, and over how many pairs: +1 where
    they put the pairs into the same order. Only those that were recorded and correlate at all."""
    rows = run_rows(trace)
    own, found = _key(rows, name), {}
    for other in (one for one in EXACT if one != name):
        key = _key(rows, other)
        both = np.isfinite(own) & np.isfinite(key)
        if np.isfinite(rho := spearman(own, key)):
            found[other] = rho, int(both.sum())
    return found


def _key(rows: pd.DataFrame, name: str) -> Floats:
    """What a ranking sorts by, turned so that the first pair has the largest number [rows]."""
    values = numbers(rows, RANKINGS[name].column)
    return values if RANKINGS[name].largest_first else -values
