"""How far chosen and rejected moved over the run, per token; and what the margin does not show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report import pair_columns
from dyn_probe.report.availability import missing
from dyn_probe.report.changes import Change, run_change
from dyn_probe.report.frames import finite, median, share, tenths
from dyn_probe.report.verdicts.verdict import Level, Number, Verdict, percent, say, sig, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

LARGE = 0.1
"""Fall of chosen (rise of rejected) in nats/token that counts as large here: 10 % of a token's probability. A
convention."""

STILL = 0.001
"""A smaller change, in nats/token, is called no movement: 0.1 % of a token's probability."""

RISE = ("normalise", "objective", "lr", "early")
"""Advice where rejected rises: what raises d_l relative to d_w, and what makes every step smaller."""
FALL = ("normalise", "chosen", "rejected", "sft", "lr", "beta")


def overall(trace: Trace) -> list[Verdict]:
    """Did chosen and rejected rise or fall over the run, and is a fall of chosen or a rise of rejected large?"""
    moved = run_change(trace)
    if moved is None:
        return []
    chosen, rejected = median(moved.chosen), median(moved.rejected)
    factor, fell = float(np.exp(chosen)), share(moved.chosen < 0)
    level, judgement = _judge(trace, chosen, rejected)
    who = "the median pair" if moved.paired else "the medians"
    sentence = (
        f"{_headline(chosen, rejected)}: {who} moved by {signed(chosen)} nats/token on chosen and "
        f"{signed(rejected)} on rejected ({moved.basis}). A chosen token is now {sig(factor)} times as "
        f"probable as before (geometric mean).{_how_many(moved, fell)}{judgement}"
    )
    return say(
        level,
        sentence,
        "median of a/n_w at the end − a/n_w at the start (rejected: b/n_l); factor = exp(change of chosen)",
        Number("change_chosen", "change of chosen, median", chosen, "nats/token"),
        Number("change_rejected", "change of rejected, median", rejected, "nats/token"),
        Number("factor_chosen", "factor on a chosen token's probability", factor, "1"),
        *([Number("fell_chosen", "pairs whose chosen fell", fell, "share")] if moved.paired else []),
        Number("n", "n", moved.n, "pairs" if moved.paired else "rows"),
        change=FALL if chosen <= -STILL else RISE if rejected >= STILL else (),
    )


def _headline(chosen: float, rejected: float) -> str:
    if _verb(chosen) == _verb(rejected):
        return f"Chosen and rejected both {_verb(chosen)}"
    return f"Chosen {_verb(chosen)} and rejected {_verb(rejected)}"


def _verb(change: float) -> str:
    return "hardly moved" if abs(change) < STILL else "fell" if change < 0 else "rose"


def _how_many(moved: Change, fell: float) -> str:
    return f" Chosen fell in {percent(fell)} of the pairs." if moved.paired else ""


def _judge(trace: Trace, chosen: float, rejected: float) -> tuple[Level, str]:
    """Level; how the fall compares with LARGE; and whether it is known where the lost mass went."""
    if chosen > -STILL and rejected < STILL:
        return "ok", ""
    if chosen > -STILL:
        size = "more" if rejected > LARGE else "less"
        words = (
            f" Rejected rose by {size} than the {LARGE} nats/token that this report calls a large rise: its tokens are "
        )
        words += f"now {sig(float(np.exp(rejected)))} times as probable as before, which the margin does not show."
        return ("warning" if rejected > LARGE else "note"), words
    size = "more" if chosen < -LARGE else "less"
    words = f" That is {size} than the {LARGE} nats/token that this report calls a large fall."
    if missing(trace, ("mass.logp_token",)):
        words += " Where the lost probability mass went was not measured (--mass-every), so the fall cannot be called "
        words += "harmless."
    return ("warning" if chosen < -LARGE else "note"), words


def hidden(trace: Trace) -> list[Verdict]:
    """Pairs whose margin grew although chosen fell, which margin and accuracy do not show."""
    moved, parts = run_change(trace), tenths(trace.pairs)
    if moved is None or not moved.paired or parts is None:
        return []
    margin = pair_columns.margin(trace.pairs)
    before, after = (share(finite(margin[mask]) > 0) for mask in (parts.first, parts.last))
    unseen = share((moved.chosen < 0) & (moved.chosen > moved.rejected))
    remark = ", which margin and accuracy do not show" if unseen > 0.1 else ""
    sentence = (
        f"In {percent(unseen)} of the pairs the margin per token grew although chosen fell{remark} "
        f"(accuracy {percent(before)} in the first tenth of the steps, {percent(after)} in the last)."
    )
    return say(
        "warning" if unseen > 0.5 else "note" if unseen > 0.1 else "ok",
        sentence,
        "pairs with Δ(a/n_w) < 0 and Δ(a/n_w) > Δ(b/n_l); accuracy = share of rows with margin > 0",
        Number("hidden_fall", "pairs with growing margin and falling chosen", unseen, "share"),
        Number("accuracy_first", "accuracy, first tenth", before, "share"),
        Number("accuracy", "accuracy, last tenth", after, "share"),
        Number("n", "n", moved.n, "pairs"),
        change=FALL[:4] if unseen > 0.1 else (),
    )
