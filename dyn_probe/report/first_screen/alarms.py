"""What must be read before anything else: numbers of the run that are not what they seem."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dyn_probe.report.verdicts import status, what_moved
from dyn_probe.report.verdicts.verdict import Verdict

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

ALARMS: tuple[Callable[[Trace], list[Verdict]], ...] = (
    status.certificate,
    status.law1,
    what_moved.untrusted,
    status.not_finite,
    status.precision,
    status.damaged,
    status.unwritten,
)
"""Statements whose warnings stand above the headline: the two laws that are checked while a run is recorded, the
comparison with plain autograd, numbers that are not finite, or that half precision leaves unsure, missing rows."""


def alarms(trace: Trace) -> list[str]:
    """Their sentences; empty where all is well."""
    return [one.sentence for statement in ALARMS for one in statement(trace) if one.level == "warning"]
