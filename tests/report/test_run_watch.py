"""`watch`: a state for whatever was written, the numbers of the rows so far, an end when the run ends or is gone."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_frames import Options, simulate
from report_runs import manifest
from rich.console import Console

from dyn_probe.errors import TraceError
from dyn_probe.report.monitor.live_state import LiveState
from dyn_probe.report.monitor.screen import WIDTH, plain_line, screen, show
from dyn_probe.report.monitor.watching import GONE, states
from dyn_probe.trace.schema import TABLES
from dyn_probe.trace.writer import TraceWriter

OPTIONS = Options(steps=40, batch=8, pairs=24, seed=2)
TABLES_WRITTEN = ("pairs", "steps", "pushes")


class Recording:
    """A run that is recorded piece by piece, a piece whenever the watcher waits."""

    def __init__(self, path: Path, pieces: list[Callable[[Recording], None]], options: Options = OPTIONS) -> None:
        self.path, self.tables, self.pieces = path, simulate(options), iter(pieces)
        self.writer = TraceWriter(path, manifest(options))

    def upto(self, low: int, high: int) -> pd.DataFrame:
        """Write the rows of these steps."""
        for name in TABLES_WRITTEN:
            rows = self.tables[name].query("@low <= step < @high").dropna(axis=1, how="all")
            known = rows.drop(columns=[one for one in TABLES[name].aliases if one in rows])
            self.writer.add(name, known.to_dict("records"))
        self.writer.flush()
        return self.tables["pairs"].query("step < @high")

    def wait(self, _: float) -> None:
        """What passes the watcher's time."""
        next(self.pieces)(self)

    def watched(self) -> Iterator[LiveState]:
        """The states that a watcher sees."""
        return states(self.path, 0.0, self.wait)


def nothing(_: Recording) -> None:
    """A piece in which nothing is written."""


def closing(recording: Recording) -> None:
    """The end of the run."""
    recording.writer.close()


def test_each_state_has_the_numbers_of_the_rows_so_far(tmp_path: Path) -> None:
    pieces = [lambda one: one.upto(0, 10), nothing, lambda one: one.upto(10, 40), closing]
    recording = Recording(tmp_path / "run", pieces)
    empty, early, late, end = recording.watched()
    assert empty.step is None and (early.step, late.step, end.step) == (9, 39, 39)
    assert [one.status for one in (empty, early, late, end)] == ["recording"] * 3 + ["closed"]
    pairs = recording.tables["pairs"]
    for state, high, tenth in ((early, 10, 1), (late, 40, 4)):
        rows, last = pairs[pairs.step < high], pairs[(pairs.step < high) & (pairs.step >= high - tenth)]
        for side in ("chosen", "rejected"):
            assert state.logp[side] == pytest.approx((last[f"logp_{side}"] / last[f"len_{side}"]).median(), rel=1e-12)
            assert state.change[side] == pytest.approx(_change(rows, side), rel=1e-12)
        margin = last.logp_chosen - last.ref_logp_chosen - last.logp_rejected + last.ref_logp_rejected
        assert state.margin == pytest.approx(margin.median()) and state.accuracy == pytest.approx((margin > 0).mean())
        both = (last.realised_delta_chosen < 0) & (last.realised_delta_rejected < 0)
        assert state.cases[2] == pytest.approx(both.mean()) and state.cases_basis == "by what happened"
        pushes = recording.tables["pushes"]
        mine = pushes[(pushes.side == "chosen") & pushes.step.between(high - tenth, high - 1)]
        assert dict(state.pushes)["past"] == pytest.approx(mine["past"].mean(), rel=1e-12)
        sizes = [abs(value) for _, value in state.pushes]
        assert sizes == sorted(sizes, reverse=True)


def _change(rows: pd.DataFrame, side: str) -> float:
    """Median over pairs seen twice of the change per token, by hand."""
    found = []
    for _, mine in rows.groupby("pair_id"):
        first, last = mine.iloc[0], mine.iloc[-1]
        if len(mine) > 1:
            end = last[f"logp_{side}"] + last[f"realised_delta_{side}"]
            found.append((end - first[f"logp_{side}"]) / first[f"len_{side}"])
    return float(np.median(found))


def test_nothing_new_is_no_new_state(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "run", [lambda one: one.upto(0, 3), nothing, nothing, nothing, closing])
    assert [state.step for state in recording.watched()] == [None, 2, 2]


def test_a_run_that_stopped_says_why_and_ends_the_watching(tmp_path: Path) -> None:
    stop = lambda one: one.writer.close("stopped", reason="the loss is not finite")  # noqa: E731
    *_, end = Recording(tmp_path / "run", [lambda one: one.upto(0, 3), stop]).watched()
    assert end.status == "stopped" and "the loss is not finite" in screen(end).plain
    assert next(states(tmp_path / "run", 0.0)).step == 2


def test_a_recorder_that_was_killed_ends_the_watching(tmp_path: Path) -> None:
    path = tmp_path / "run"
    script = (
        "import os, sys; from dyn_probe.trace.writer import TraceWriter; w = TraceWriter(sys.argv[1], {});"
        "w.add('steps', [{'step': 4, 'loss': 1.0}]); w.flush(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -signal.SIGKILL
    (only,) = states(path, 0.0)
    assert only.status == "recording" and only.reason == GONE and only.step == 4


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="does not exist"):
        next(states(tmp_path / "none", 0.0))


def test_the_screen_fits_eighty_columns_and_shows_text_as_text(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "[red]run", [lambda one: one.upto(0, 40), closing])
    *_, end = recording.watched()
    lines = screen(end).plain.splitlines()
    assert max(map(len, lines)) <= WIDTH and "[red]run" in lines[0] and len(lines) <= 32
    said = " ".join(lines)
    for words in ("chosen", "rejected", "margin", "accuracy", "both down", "Pushes on chosen", "▲", "→"):
        assert words in said


def test_without_a_terminal_each_state_is_a_line(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "run", [lambda one: one.upto(0, 20), lambda one: one.upto(20, 40), closing])
    out = io.StringIO()
    show(recording.watched(), Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert [re.findall(r"step (\d+)", line) for line in lines] == [[], ["19"], ["39"], ["39"]]
    assert all(len(line) > WIDTH and "\x1b" not in line for line in lines[1:])
    assert plain_line(next(states(tmp_path / "run", 0.0))) == lines[-1]


def test_ctrl_c_leaves_and_the_run_goes_on(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "run", [])
    recording.upto(0, 5)
    script = "from dyn_probe_cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "watch", str(recording.path), "--every", "0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job inherits it as ignored
    )
    assert process.stdout is not None
    first = process.stdout.readline()  # waits for the first state
    process.send_signal(signal.SIGINT)
    rest, complained = process.communicate(timeout=200)
    assert first.startswith("step 4") and process.returncode == 0 and complained == ""
    assert rest.endswith(f"Left; the run continues.\nNext: dyn-probe summary {recording.path}\n")
    recording.upto(5, 6)
    recording.writer.close()
