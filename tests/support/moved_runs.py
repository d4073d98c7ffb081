"""Synthetic runs whose end was measured: every pair moved by the same amount per token from the start of the run."""

from __future__ import annotations

from pathlib import Path

from report_frames import DEFAULT, Options, simulate
from report_runs import manifest, write_tables
from report_tables import fill

from dyn_probe.trace.reader import Trace, load_trace


def moved_run(path: Path, chosen: float, rejected: float, options: Options = DEFAULT, **push: float) -> Trace:
    """A run whose end was measured: every pair moved by so much per token from the reference, its start."""
    tables = simulate(options)
    pairs = tables["pairs"]
    first = pairs.step == 0
    for side in ("chosen", "rejected"):
        pairs.loc[first, f"logp_{side}"] = pairs.loc[first, f"ref_logp_{side}"]
    rows = pairs.drop_duplicates("pair_id")
    ends = {f"logp_{s}": rows[f"ref_logp_{s}"] + by * rows[f"len_{s}"] for s, by in
            (("chosen", chosen), ("rejected", rejected))}  # fmt: skip
    lengths = {name: rows[name] for name in ("len_chosen", "len_rejected")}
    tables["final"] = fill("final", {"pair_id": rows.pair_id, "rank": 0, **ends, **lengths})
    for name, value in push.items():
        tables["pushes"][name] = value
    return load_trace(write_tables(path, tables, manifest(options)))
