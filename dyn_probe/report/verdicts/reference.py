"""Log-ratio to the reference per token: at the end of the run, and since chosen peaked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report import pair_columns
from dyn_probe.report.changes import span, step_span
from dyn_probe.report.frames import Floats, finite, last_tenth, median, numbers
from dyn_probe.report.verdicts.movement import LARGE, STILL
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, quartiles, say, sig, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

MENTIONED = 0.01
"""A smaller fall of the medians, in nats/token, is not mentioned."""


def distance(trace: Trace) -> list[Verdict]:
    """Log-ratio to the reference per token at the end of the run."""
    rows = last_tenth(trace.pairs)
    values = {side: finite(pair_columns.since_reference(rows, side)) for side in pair_columns.SIDES}
    if not all(len(value) for value in values.values()):
        return []
    found = {side: np.quantile(value, (0.25, 0.5, 0.75)) for side, value in values.items()}
    words = (f"{side} {signed(middle)} ({quartiles(low, high)})" for side, (low, middle, high) in found.items())
    chosen, n = float(found["chosen"][1]), len(values["chosen"])
    return say(
        "ok" if chosen > -STILL else "note" if chosen >= -LARGE else "warning",
        f"Relative to the reference, in {step_span(rows)}: {' and '.join(words)} nats/token (medians of "
        f"{count(n, 'row')}).",
        "median of (a − r_w)/n_w and of (b − r_l)/n_l",
        *(
            Number(f"reference_{side}", f"{side} relative to the reference, median", q[1], "nats/token")
            for side, q in found.items()
        ),
        Number("n", "n", n, "rows"),
        change=("lr", "beta") if chosen <= -STILL else (),
    )


def turn(trace: Trace) -> list[Verdict]:
    """When chosen peaked relative to the reference, and whether it was still falling at the end."""
    levels = tenth_medians(trace)
    if levels is None:
        return []
    spots, values = levels
    peak = int(np.argmax(values))
    fall = float(values[-1] - values[peak])
    if fall > -MENTIONED:
        return []
    last = float(values[-1] - values[-2])
    steady = fall / (len(values) - 1 - peak)
    top = f"since its peak in {span(spots[peak])} ({signed(values[peak])})"
    sentence = (
        f"Relative to the reference, chosen has lost {sig(-fall)} nats/token "
        f"{'since the start' if peak == 0 else top}; "
        f"{'it was still falling at the end' if last < steady / 2 else 'the fall had slowed or stopped by the end'} "
        f"({signed(values[-2])} and {signed(values[-1])} in the last two tenths of the run)."
    )
    return say(
        "warning" if fall < -LARGE else "note",
        sentence,
        "medians of (a − r_w)/n_w over each tenth of the steps; still falling: the last change is over half of an even "
        "fall",
        Number("since_peak_chosen", "change of chosen since its highest tenth", fall, "nats/token"),
        Number("last_change_chosen", "change of chosen in the last tenth", last, "nats/token"),
        Number("n", "n", len(finite(pair_columns.since_reference(trace.pairs, "chosen"))), "rows"),
        change=("early", "lr"),
    )


def tenth_medians(trace: Trace) -> tuple[list[tuple[int, int]], Floats] | None:
    """Step ranges of the ten tenths of the run, and chosen's median log-ratio per token in each [10]."""
    value, steps = pair_columns.since_reference(trace.pairs, "chosen"), numbers(trace.pairs, "step")
    distinct = np.unique(steps)
    if len(distinct) < 10:
        return None
    groups = np.array_split(distinct, 10)
    medians = np.array([median(value[(steps >= group[0]) & (steps <= group[-1])]) for group in groups])
    spots = [(int(group[0]), int(group[-1])) for group in groups]
    return (spots, medians) if np.isfinite(medians).all() else None
