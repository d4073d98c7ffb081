"""A reader that is overtaken at any point of its work sees every row once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from trace_samples import recorded_steps, step_rows

from dyn_probe.trace import merge
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.writer import TraceWriter

READING = ["list_streams", "_stream", "read_manifest", "_parquet", "_conform", "_cut", "_sorted"]
"""What a reader does, in the order in which it does it."""

overtaken = pytest.mark.parametrize("place", READING)


def _before(patch: pytest.MonkeyPatch, place: str, event: Callable[[], None]) -> list[str]:
    """Let ``event`` happen once, just before the reader comes to ``place``; returns the list that it is noted in."""
    function, happened = getattr(merge, place), []

    def overtake(*arguments: object) -> object:
        if not happened:
            happened.append(place)
            event()
        return function(*arguments)

    patch.setattr(merge, place, overtake)
    return happened


@overtaken
def test_a_merge_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    writer = TraceWriter(tmp_path / "run", {})
    writer.add("pairs", step_rows(0, 1, 2))
    writer.flush()
    trace = load_trace(tmp_path / "run")
    happened = _before(monkeypatch, place, writer.close)
    assert recorded_steps(trace) == [0, 1, 2]
    assert happened
    assert not (tmp_path / "run/streams").exists()


@pytest.mark.parametrize("closed", [False, True], ids=["streams", "parquet"])
@overtaken
def test_a_resume_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, closed: bool) -> None:
    run = tmp_path / "run"
    with TraceWriter(run, {}) as writer:
        writer.add("pairs", step_rows(0, 1))
    old = TraceWriter(run, {}, resume=True)
    old.add("pairs", step_rows(2, 3))
    old.flush()
    resumed: list[TraceWriter] = []

    def go_back_to_step_2() -> None:
        old.close()
        resumed.append(TraceWriter(run, {}, resume=True, resume_step=2))
        resumed[0].add("pairs", step_rows(2, 3, 4))
        resumed[0].close() if closed else resumed[0].flush()

    _before(monkeypatch, place, go_back_to_step_2)
    assert recorded_steps(run) in ([0, 1, 2, 3], [0, 1], [0, 1, 2, 3, 4])  # before, meanwhile, after
    assert recorded_steps(run) == [0, 1, 2, 3, 4]
    resumed[0].close()
