"""Several runs opened together, each under a short name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dyn_probe.errors import BadInput
from dyn_probe.report.comparing import labelled
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.references import trace_folder

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def opened(runs: Sequence[Path]) -> dict[str, Trace]:
    """Traces by label, in the order of the folders.

    Raises:
        BadInput: a folder is named twice.
        TraceError: a run cannot be read; the message names it.
    """
    places = [trace_folder(run).resolve() for run in runs]
    again = [str(run) for run, place in zip(runs, places, strict=True) if places.count(place) > 1]
    if again:
        raise BadInput(
            f"wanted different runs to compare, got the same folder {len(again)} times: {', '.join(again)}; name each "
            "run once"
        )
    return labelled([load_trace(run) for run in runs])
