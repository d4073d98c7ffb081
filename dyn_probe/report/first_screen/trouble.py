"""What went wrong in a run, if anything: chosen that fell, or rejected that rose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dyn_probe.report.changes import run_change
from dyn_probe.report.frames import median

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

WORTH = 0.01
"""A fall of chosen or a rise of rejected from which on something is to be changed, in nats/token: one per cent of a
token's probability. A convention."""


def trouble(trace: Trace) -> str:
    """The side whose movement is the run's trouble: `chosen` where it fell by WORTH or more, else `rejected` where it
    rose by as much; empty where neither did, or where nothing was measured."""
    moved = run_change(trace)
    if moved is None:
        return ""
    if median(moved.chosen) <= -WORTH:
        return "chosen"
    return "rejected" if median(moved.rejected) >= WORTH else ""
