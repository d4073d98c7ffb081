"""How far the held-out pairs moved, beside the pairs that were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.frames import numbers
from dyn_probe.report.pair_columns import SIDES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


@dataclass(frozen=True)
class HeldOutChange:
    """Mean change of both responses over the held-out pairs, in nats/sequence, from the evaluation before step `first`
    to that before step `last` (None: the one after the last step)."""

    chosen: float
    rejected: float
    first: int
    last: int | None

    def side(self, name: str) -> float:
        """The change of one side."""
        return self.chosen if name == "chosen" else self.rejected

    @property
    def margin(self) -> float:
        """Change of chosen minus that of rejected: the growth of a − b, nats/sequence."""
        return self.chosen - self.rejected

    @property
    def when(self) -> str:
        """From when to when, in words."""
        begun = "the start of training" if self.first == 0 else f"step {self.first}"
        return f"from {begun} to {'the end' if self.last is None else f'step {self.last}'}"


def held_out_change(trace: Trace) -> HeldOutChange | None:
    """From the first to the last evaluation of the held-out pairs; None where there are no two of them.

    The first is before the first step of the training, so the log-probabilities at the start stand for a reference,
    and every objective has this change.
    """
    steps = trace.steps.sort_values("step", kind="stable")
    at = numbers(steps, "step")
    values = np.stack([numbers(steps, f"eval_logp_{side}") for side in SIDES], axis=1)
    known = np.isfinite(values).all(1)
    if not known.any():
        return None
    at, values = at[known], values[known]
    after = [getattr(trace.about.held_out, f"eval_logp_{side}", None) for side in SIDES]
    if all(isinstance(value, int | float) and np.isfinite(value) for value in after):
        end, last = np.array(after, dtype=np.float64), None
    elif len(values) > 1:
        end, last = values[-1], int(at[-1])
    else:
        return None
    chosen, rejected = end - values[0]
    return HeldOutChange(float(chosen), float(rejected), int(at[0]), last)
