"""Follow a run while it is written: a new state whenever the recorder has written something, until the run ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from dyn_probe.errors import BadInput
from dyn_probe.report.monitor.live_state import LiveState, live_state
from dyn_probe.trace.lock import is_recording
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.references import is_reference
from dyn_probe.trace.run_folder import fingerprint

REST = 4.0
"""After a reading that took t seconds the next one waits at least REST · t: watching takes a fifth of a core."""
GONE = "the process that recorded it is gone, and the trace was not closed"


def states(run: Path, every: float, wait: Callable[[float], None] = time.sleep) -> Iterator[LiveState]:
    """The state of a run each time something was written; ends with the state in which the run ended.

    A run whose process is gone without closing the trace ends too; its last state says so.

    Args:
        run: folder of a trace.
        every: shortest time between two readings, in seconds.
        wait: what passes the time.

    Raises:
        BadInput: a reference trace, which nobody is recording.
        TraceError: the folder is not a trace, or cannot be read any more.
    """
    if is_reference(run):
        raise BadInput(f"watch follows a run that is being recorded, and {run} is not; write: dyn-probe summary {run}")
    seen = None
    while True:
        alive = is_recording(run)  # asked first: what a recorder that is gone has written is then read below
        files = fingerprint(run)
        began = time.monotonic()
        if files != seen or not alive:
            state, seen = live_state(load_trace(run)), files
            if state.status != "recording":
                yield state
                return
            if not alive:
                yield _left(state)
                return
            yield state
        wait(max(every, REST * (time.monotonic() - began)))


def _left(state: LiveState) -> LiveState:
    return replace(state, reason=GONE)
