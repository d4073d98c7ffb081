"""How far the recorded pushes explain what was measured, run by run.

    python benchmarks/explained.py RUN… [--top 15]
    python benchmarks/explained.py --record FOLDER [--out benchmarks/results/explained.md]

For every run, a row of a Markdown table: the share of rows in which the total push has the sign of the realised
change, and their correlation, for both sides; how much of the squared difference of the two is one step's; the case of
most rows, by measurement and with every realised column removed; and how many of the pairs whose chosen response fell
most are among the first by total pushes alone: where the fall is the sum of the realised changes of the recorded steps,
and where it is the change from the start of the run to its end (there by the measured change between recorded rows
too). The two sides of each comparison were obtained separately: totals from gradients and the weights' change,
realised changes by further forward passes. ``--record`` trains the runs of RUNS (built-in model, some twenty seconds
each; those that are in FOLDER already are kept) and compares them.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd

from dyn_probe import load_trace
from dyn_probe.report.agreement import agreement
from dyn_probe.report.basis import BASES, basis_of, case_of, completed
from dyn_probe.report.frames import finite, numbers
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.push_parts import of_side
from dyn_probe.report.ranked import RANKINGS, ranked_pairs, run_rows
from dyn_probe.trace.reader import Trace

SHORT = ("--steps", "40", "--max-pairs", "120")
METHODS: dict[str, tuple[str, ...]] = {
    "dpo": (),
    "dpo-beta-0.5": ("--beta", "0.5"),
    "gate-seq": ("--shaping", "gate-seq"),
    "dpop": ("--objective", "dpop"),
    "adadpo": ("--shaping", "adadpo"),
    "dpo_shift": ("--objective", "dpo_shift"),
    "pairwise-normalised": ("--shaping", "pairwise-normalised"),
}
STYLES = ("single-token", "short-suffix", "long-suffix", "prefix-suffix")
FASTER = "2e-4"
RUNS: dict[str, tuple[str, ...]] = {
    "demo": ("--max-pairs", "200", "--steps", "100", "--update"),
    **{style: (*SHORT, "--data", f"sentiment:{style}") for style in STYLES},
    **{f"{name}-{s}": (*SHORT, *given, "--seed", str(s)) for name, given in METHODS.items() for s in (0, 1)},
    **{
        f"{name}-{s}-lr-{FASTER}": (*SHORT, *given, "--seed", str(s), "--lr", FASTER)
        for name, given in METHODS.items()
        for s in (0, 1)
    },
    "dpo-0-lr-5e-5": (*SHORT, "--lr", "5e-5"),
    "every-pair": (*SHORT, "--batch-size", "108"),
}
"""Name of a run → what follows `dyn-probe record`. The last ones show what the comparison depends on: larger and
smaller steps, and a run in which every pair is recorded at every step."""

HEAD = (
    "run", "rows", "sign, r: chosen", "sign, r: rejected", "worst step's share of the squared difference",
    "r without it", "case: measured, without realised columns", "pairs, rows of each",
    "first {top} of the recorded steps: pushes", "first {top} from start to end: pushes, fall",
)  # fmt: skip


def record(folder: Path) -> list[Path]:
    """Train the runs that the folder lacks; all of them."""
    for name, options in RUNS.items():
        if not (folder / name / "run.json").exists():
            print(f"{name}: dyn-probe record {' '.join(options)}", flush=True)
            subprocess.run(["dyn-probe", "record", "--out", folder / name, *options], check=True, capture_output=True)
    return [folder / name for name in RUNS]


def measured(trace: Trace, side: str) -> pd.DataFrame:
    """Rows with a total push and a realised change of the side: step, pair_id, total, realised."""
    pushes = of_side(trace, side)[["step", "pair_id", "total"]]
    realised = trace.pairs.rename(columns={f"realised_delta_{side}": "realised"})[["step", "pair_id", "realised"]]
    return realised.merge(pushes, on=["step", "pair_id"]).dropna()


def worst_step(rows: pd.DataFrame) -> tuple[float, float]:
    """Share of ``Σ (realised − total)²`` that one step has, and the correlation without that step."""
    squares = (rows["realised"] - rows["total"]).pow(2).groupby(rows["step"]).sum()
    others = rows[rows["step"] != squares.idxmax()]
    return float(squares.max() / squares.sum()), agreement(
        numbers(others, "total"), numbers(others, "realised")
    ).pearson


def majority(trace: Trace, realised: bool) -> str:
    """The case of most rows, the basis it rests on, and the rows of the two most frequent cases; with or without what
    was measured."""
    pairs = completed(trace)
    if not realised:
        pairs = pairs.drop(columns=[name for name in pairs.columns if "realised" in name])
    basis = basis_of(pairs)
    counts = np.bincount(finite(case_of(pairs, basis)).astype(int), minlength=5)
    second, first = np.argsort(counts, kind="stable")[-2:]
    return f"{first} ({BASES[basis].name}, {counts[first]} : {counts[second]})"


def overlap_of_steps(rows: pd.DataFrame, top: int) -> int:
    """How many of the pairs that fell most in the recorded steps are among the first by the sums of their totals."""
    sums = rows.groupby("pair_id")[["total", "realised"]].sum()
    first = [set(sums[name].nsmallest(top).index) for name in ("total", "realised")]
    return len(first[0] & first[1])


def overlap(trace: Trace, by: str, top: int) -> int:
    """How many of the pairs that fell most by measurement, start to end, are among the first of a ranking."""
    rows = run_rows(trace)
    fell = rows.iloc[np.argsort(numbers(rows, RANKINGS["run"].column), kind="stable")[:top]]["pair_id"]
    return len(set(fell) & set(ranked_pairs(trace, by, top)["pair_id"]))


def cells(folder: Path, top: int) -> list[str]:
    """The row of a run, as HEAD names it."""
    trace = load_trace(folder)
    tables = [measured(trace, side) for side in SIDES]
    found = [agreement(numbers(rows, "total"), numbers(rows, "realised")) for rows in tables]
    share, others = worst_step(tables[0])
    cases = ", ".join(majority(trace, realised) for realised in (True, False))
    pairs = trace.pairs["pair_id"].nunique()
    return [
        folder.name, str(found[0].n), *(f"{100 * one.same_sign:.1f} %, {one.pearson:.3f}" for one in found),
        f"{100 * share:.0f} %", f"{others:.3f}", cases, f"{pairs}, {len(trace.pairs) / pairs:.1f}",
        str(overlap_of_steps(tables[0], top)),
        ", ".join(str(overlap(trace, by, top)) for by in ("pushes", "fall")),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--record", type=Path, metavar="FOLDER")
    parser.add_argument("--top", type=int, default=15)
    parser.add_argument("--out", type=Path, help="also write the table to this file, in place of the one there")
    options = parser.parse_args()
    folders = [*options.runs, *(record(options.record) if options.record else ())]
    if not folders:
        parser.error("name recorded runs, or --record FOLDER")
    lines = [[one.format(top=options.top) for one in HEAD], ["---"] * len(HEAD)]
    lines += [cells(folder, options.top) for folder in folders]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    print(table, end="")
    if options.out:
        kept = options.out.read_text().split("| run |")[0] if options.out.exists() else ""
        options.out.write_text(kept + table)


if __name__ == "__main__":
    main()
