"""Synthetic runs whose end was measured: every pair moved by the same amount per token from the start of the run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from report_frames import DEFAULT, Options, simulate
from report_runs import manifest, write_tables
from report_tables import fill

from dyn_probe.trace.reader import Trace, load_trace


def moved_run(path: Path, chosen: float, rejected: float, options: Options = DEFAULT, **push: float) -> Trace:
    """A run whose end was measured: every pair moved by so much per token from the reference, its start."""
    tables = moved_tables(chosen, rejected, options)
    for name, value in push.items():
        tables["pushes"][name] = value
    return load_trace(write_tables(path, tables, manifest(options)))


def held_out_run(path: Path, trained: tuple[float, float], unseen: tuple[float, float], **about: object) -> Trace:
    """The same with held-out pairs, evaluated before the first step and before the last: by so much they moved
    (nats/sequence); `about` replaces fields of run.json."""
    tables = moved_tables(*trained, DEFAULT)
    steps = tables["steps"]
    for side, by in zip(("chosen", "rejected"), unseen, strict=True):
        steps.loc[steps.step == 0, f"eval_logp_{side}"] = -40.0
        steps.loc[steps.step == steps.step.max(), f"eval_logp_{side}"] = -40.0 + by
    return load_trace(write_tables(path, tables, manifest(DEFAULT) | about))


def moved_tables(chosen: float, rejected: float, options: Options) -> dict[str, pd.DataFrame]:
    """The tables of such a run."""
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
    return tables
