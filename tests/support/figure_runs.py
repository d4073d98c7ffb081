"""The kinds of run that every figure must be able to draw: a fixture ``traces`` (see conftest.py), and ``drawn``."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from report_frames import DEFAULT, Options
from report_runs import manifest, new_trace, write_tables

from dyn_probe.trace.reader import Trace, load_trace

RUNS = {
    "full": Options(turn=0.3, gate=True, mass=True),
    "bare": Options(steps=20, reference=False, realised=False, update=False, pushes=False, gram=False),
    "one step": Options(steps=1, batch=4),
    "one row": Options(steps=1, batch=1, pairs=1),
}


def make_traces(folder: Path) -> dict[str, Trace]:
    """A trace of every kind, and an empty one that was not closed."""
    made = {name: new_trace(folder / name, options) for name, options in RUNS.items()}
    made["empty"] = load_trace(write_tables(folder / "empty", {}, manifest(DEFAULT), "recording"))
    return made


def drawn(figure: Figure) -> Figure:
    """The figure, laid out as it would be saved."""
    figure.draw_without_rendering()
    return figure
