"""How much of a response's movement came in the steps that train its own pair, and how much in the steps between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report.changes import run_change, run_start
from dyn_probe.report.frames import finite, numbers, once
from dyn_probe.report.push_parts import of_side

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

KEYS = ["step", "rank", "pair_id"]


@once
def own_share(trace: Trace) -> dict[str, float]:
    """Side → share of its mean change over the run (nats/token) that came in the steps that trained the same pair.

    What a step changed is what was measured of it, else the total of its pushes. Empty where not every step was
    recorded, where some row has neither, or where the change of the same pairs was not measured to the end of the run.
    """
    moved, start = run_change(trace), run_start(trace)
    if moved is None or not moved.ids or len(trace.final) == 0 or not _every_step(trace):
        return {}
    found = {}
    for side in ("chosen", "rejected"):
        lengths = numbers(start, f"len_{side}")
        steps = _of_steps(trace, side)
        if steps is None or not np.mean(moved.side(side)):
            return {}
        own = (steps / pd.Series(lengths, index=start.index)).reindex(list(moved.ids))
        found[side] = float(own.mean() / np.mean(moved.side(side)))
    return found if np.isfinite(list(found.values())).all() else {}


def _every_step(trace: Trace) -> bool:
    """Whether each step of the run has rows."""
    steps = finite(numbers(trace.steps, "step"))
    return len(steps) > 0 and len(np.unique(numbers(trace.pairs, "step"))) == steps.max() - steps.min() + 1


def _of_steps(trace: Trace, side: str) -> pd.Series | None:
    """What the recorded steps changed of each pair's response, nats a sequence; None where a row is not known."""
    rows = trace.pairs[[*KEYS, f"realised_delta_{side}"]].drop_duplicates(KEYS)
    totals = of_side(trace, side)[[*KEYS, "total"]].drop_duplicates(KEYS)
    rows = rows.merge(totals, on=KEYS, how="left")
    measured, pushed = numbers(rows, f"realised_delta_{side}"), numbers(rows, "total")
    changes = measured if np.isfinite(measured).all() else pushed
    return pd.Series(changes).groupby(rows["pair_id"].to_numpy()).sum() if np.isfinite(changes).all() else None
