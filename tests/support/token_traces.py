"""Traces that hold given heat maps."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from report_frames import Options, simulate
from report_runs import manifest, write_tables
from token_samples import table_rows

from dyn_probe.trace.reader import Trace, load_trace


def trace_of(path: Path, heats) -> Trace:
    tables = simulate(Options(steps=3, batch=2, pairs=2))
    tables["tokens"] = pd.DataFrame([row for heat in heats for row in table_rows(heat)])
    return load_trace(write_tables(path, tables, manifest(Options())))
