"""Synthetic runs on disk: the tables of `report_frames` recorded with the trace writer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
from report_frames import DEFAULT, Options, simulate

from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.trace.schema import TABLES
from dyn_probe.trace.writer import TraceWriter


def manifest(options: Options) -> dict[str, object]:
    """A run.json as the recorder writes it."""
    return {
        "command": "dyn-probe record --objective dpo",
        "config": {
            "lr": options.learning_rate,
            "beta": options.beta,
            "steps": options.steps,
            "seed": options.seed,
        },
        "model": {"name": "built-in", "parameters": 124_439_808},
        "data": {"name": "sentiment:short-suffix", "pairs": options.pairs},
        "objective": {"name": "dpo", "hyper": {"beta": options.beta}},
        "certificate": {
            "max_relative_error": 3.1e-7,
            "tolerance": 1e-4,
            "pairs": 1,
            "parameters": 124_439_808,
        },
        "skipped_rows": [],
        "versions": {"torch": "2.13.0"},
    }


def write_run(path: Path, options: Options = DEFAULT, status: str = "closed", **fields: object) -> Path:
    """Record a synthetic run with the trace writer; `fields` replace or extend those of run.json."""
    tables = simulate(options)
    return write_tables(path, tables, {**manifest(options), **fields}, status)


def write_tables(path: Path, tables: dict[str, pd.DataFrame], about: dict[str, object], status: str = "closed") -> Path:
    """Record tables with the trace writer, null columns left out; status `recording` leaves it unclosed."""
    writer = TraceWriter(path, about, flush_rows=100_000)
    for name, frame in tables.items():
        known = frame.drop(columns=[alias for alias in TABLES[name].aliases if alias in frame])
        present = known.dropna(axis=1, how="all")
        writer.add(name, present.to_dict("records"))
    if status == "recording":
        writer.flush()
    else:
        writer.close(status, reason="out of memory" if status == "stopped" else None)
    return path


def new_trace(path: Path, options: Options = DEFAULT, **fields: object) -> Trace:
    """Record a synthetic run and open it."""
    return load_trace(write_run(path, options, **fields))


def with_manifest(trace: Trace, **more: object) -> Trace:
    """The trace with other entries of ``run.json``."""
    return replace(trace, manifest={**trace.manifest, **more})
