"""Whether what became of the pairs that were trained on also became of the held-out pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.changes import run_change
from dyn_probe.report.frames import finite, median, numbers
from dyn_probe.report.side_by_side.held_out_pairs import HeldOutChange, held_out_change
from dyn_probe.report.verdicts.movement import STILL
from dyn_probe.report.verdicts.verdict import Number, Verdict, say, sig, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

WORTH = 0.01
"""A fall of chosen on held-out pairs from which on it is warned about, in nats/token of a typical chosen response of
the training pairs. A convention."""
DIGITS = 2


def held_out_line(trace: Trace) -> str:
    """`On held-out pairs chosen fell 1.5 nats/sequence, rejected fell 3.2 (…).`; empty where nothing was held out."""
    found = held_out_change(trace)
    if found is None:
        return ""
    return f"On held-out pairs {_went('chosen', found, ' nats/sequence')}, {_went('rejected', found)}."


def _went(side: str, found: HeldOutChange, unit: str = "") -> str:
    change = found.side(side)
    if round(change, 9) == 0:
        return f"{side} did not move"
    return f"{side} {'fell' if change < 0 else 'rose'} {sig(abs(change), DIGITS)}{unit}"


def generalised(trace: Trace) -> list[Verdict]:
    """Chosen on held-out pairs beside chosen on the pairs that were trained on: the second can rise by memory alone."""
    found, moved = held_out_change(trace), run_change(trace)
    if found is None or moved is None:
        return []
    trained, other = median(moved.chosen), median(moved.rejected)
    fell = found.chosen < -WORTH * _length(trace)
    unseen = fell and trained > -STILL
    way = "held" if abs(trained) < STILL else "rose" if trained > 0 else "fell"
    words = (
        f"{held_out_line(trace)[:-1]} (mean, {found.when}); on the pairs that it trained on chosen {way} "
        f"({signed(trained)} nats/token, {moved.basis})."
    )
    if unseen:
        words += (
            " The training pairs hide the fall: what they gained does not carry over to pairs that were not trained "
            "on, and those are what the model will meet."
        )
    return say(
        "warning" if unseen else "note",
        words,
        "mean a (and mean b) over the held-out pairs at the last evaluation − at the first, which is before training: "
        "it stands for a reference where the objective has none; training pairs: median of a/n_w at the end − at the "
        f"start. Warned about where that is above −{STILL} nats/token and held-out chosen fell by more than {WORTH} "
        "nats/token of the training pairs' median length",
        Number("held_out_change_chosen", "held-out change of chosen, mean", found.chosen, "nats/sequence"),
        Number("held_out_change_rejected", "held-out change of rejected, mean", found.rejected, "nats/sequence"),
        Number("held_out_margin", "held-out growth of a − b", found.margin, "nats/sequence"),
        Number("trained_change_chosen", "training pairs: change of chosen, median", trained, "nats/token"),
        Number("trained_change_rejected", "training pairs: change of rejected, median", other, "nats/token"),
        change=("early", "lr", "sft") if unseen else (),
    )


def _length(trace: Trace) -> float:
    """Median number of tokens of a chosen response of the training pairs; 1 where it was not recorded."""
    lengths = finite(numbers(trace.pairs, "len_chosen"))
    return float(np.median(lengths)) if len(lengths) else 1.0
