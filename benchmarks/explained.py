"""How far the recorded pushes explain what was measured, run by run.

    python benchmarks/explained.py RUN… [--top 15]

For every run: the share of rows in which the total push has the sign of the realised change, and their correlation,
for both sides; the case that most rows are in with every realised column removed, beside the realised one; and how
many of the pairs that fell most over the run are among the first by the sums of their pushes. The two sides of each
comparison were obtained apart: totals from gradients and the weights' change, realised changes by further forwards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from dyn_probe import load_trace
from dyn_probe.report.agreement import agreement
from dyn_probe.report.basis import BASES, basis_of, case_of, completed
from dyn_probe.report.frames import finite, numbers
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.push_parts import of_side
from dyn_probe.report.ranked import ranked_pairs, run_rows
from dyn_probe.trace.reader import Trace


def measured(trace: Trace, side: str) -> pd.DataFrame:
    """Rows with a total push and a realised change of the side."""
    pushes = of_side(trace, side)[["step", "pair_id", "total"]]
    return trace.pairs[["step", "pair_id", f"realised_delta_{side}"]].merge(pushes, on=["step", "pair_id"])


def majority(trace: Trace, realised: bool) -> tuple[int, str]:
    """The case of most rows and the basis it rests on, with or without what was measured."""
    pairs = completed(trace)
    if not realised:
        pairs = pairs.drop(columns=[name for name in pairs.columns if "realised" in name])
    basis = basis_of(pairs)
    case = finite(case_of(pairs, basis))
    return int(np.bincount(case.astype(int)).argmax()), BASES[basis].name


def overlap(trace: Trace, top: int) -> int:
    """How many of the pairs that fell most by measurement are among the first by the sums of their totals alone."""
    rows = run_rows(trace)
    fell = rows.iloc[np.argsort(numbers(rows, "run_change_chosen"), kind="stable")[:top]]["pair_id"]
    pushed = ranked_pairs(trace, "pushes", top)["pair_id"]
    return len(set(fell) & set(pushed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--top", type=int, default=15)
    options = parser.parse_args()
    print(f"{'run':<34}{'rows':>6}  {'chosen':>14}  {'rejected':>14}  case: realised, without it   first {options.top}")
    for folder in options.runs:
        trace = load_trace(folder)
        found = [agreement(numbers(t, "total"), numbers(t, f"realised_delta_{s}")) for s, t in _tables(trace)]
        signs = "  ".join(f"{100 * one.same_sign:5.1f} % r {one.pearson:.3f}" for one in found)
        real, other = majority(trace, True), majority(trace, False)
        cases = f"{real[0]} ({real[1]}), {other[0]} ({other[1]})"
        print(f"{folder.name:<34}{found[0].n:>6}  {signs}  {cases:<27}  {overlap(trace, options.top)}")


def _tables(trace: Trace) -> list[tuple[str, pd.DataFrame]]:
    return [(side, measured(trace, side)) for side in SIDES]


if __name__ == "__main__":
    main()
