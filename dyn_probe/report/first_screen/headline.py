"""The headline of a run: one sentence on what happened, one on what moved it, and a line on how sure both are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dyn_probe.report.agreement import agreement
from dyn_probe.report.basis import BASES, basis_of, case_of, completed
from dyn_probe.report.changes import Change, run_change
from dyn_probe.report.first_screen.own_steps import own_share
from dyn_probe.report.first_screen.trouble import trouble
from dyn_probe.report.frames import finite, half_errors, median, numbers, share
from dyn_probe.report.push_parts import Balance, balance, kept_apart, means, of_side
from dyn_probe.report.verdicts.movement import STILL
from dyn_probe.report.verdicts.verdict import percent, sig
from dyn_probe.report.verdicts.what_moved import ERRORS

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

DIGITS = 2
"""Significant digits of the first screen: one number per quantity, in two digits."""

GROUPS: dict[str, tuple[str, ...]] = {
    "its own pair": ("own_chosen", "own_rejected"),
    "other pairs of the batch": ("others",),
    "momentum": ("past",),
    "weight decay": ("decay",),
    "rounding of the stored weights": ("rounding",),
}
"""Through what a response is moved → the parts of its push that are added up for it."""
OTHER = {"chosen": "rejected", "rejected": "chosen"}
BETWEEN, NEARLY = 0.25, 0.1
"""Share of the movement in steps on the pair itself below which the headline is about the other steps, and below which
these are called nearly all of it."""


def headline(trace: Trace) -> list[str]:
    """The two sentences: what happened, and what moved it."""
    return [happened(trace), moved_by(trace)]


def happened(trace: Trace) -> str:
    """The change of both sides over the run, and how many of the updates lowered (or raised) both."""
    moved = run_change(trace)
    if moved is None:
        return "How far chosen and rejected moved is not known: no pair was measured twice."
    first = trouble(trace) or "chosen"
    sentence = f"{_went(moved, first).capitalize()}, {_went(moved, OTHER[first])}"
    return f"{sentence}{_both(trace, first)}."


def _went(moved: Change, side: str) -> str:
    """`chosen fell 0.38 nats/token (×0.68)`."""
    change = median(moved.side(side))
    if abs(change) < STILL:
        return f"{side} hardly moved"
    verb = "fell" if change < 0 else "rose"
    return f"{side} {verb} {sig(abs(change), DIGITS)} nats/token (×{sig(float(np.exp(change)), DIGITS)})"


def _both(trace: Trace, first: str) -> str:
    """The share of updates that moved both the wrong way, on the best basis of the run."""
    pairs = completed(trace)
    basis = basis_of(pairs)
    case = finite(case_of(pairs, basis))
    if not len(case):
        return ""
    number, verb = (2, "lowered") if first == "chosen" else (3, "raised")
    words = "" if basis == "realised" else f", {BASES[basis].words}"
    if basis == "plain":
        return (
            f"; a plain step on each pair alone would have {verb} both in {percent(share(case == number))} of the rows"
        )
    return f"; {percent(share(case == number))} of updates {verb} both{words}"


def moved_by(trace: Trace) -> str:
    """The balance of chosen and rejected pushes on the side that the headline is about, and through what it acted."""
    side = trouble(trace) or "chosen"
    rows = of_side(trace, side)
    if trace.about.scan is not None:
        return "What moved them is not known: the pairs were measured at saved checkpoints, not during a training."
    if not len(finite(numbers(rows, "total"))):
        note = trace.about.pushes
        why = (note.reason if note is not None else "") or "record with --metric-every"
        return f"What moved them is not known: the optimizer's steps were not taken apart ({why})."
    way, found = through(trace, side), balance(trace, own=False, side=side)
    total = float(finite(numbers(rows, "total")).mean())
    moved = run_change(trace)
    change = 0.0 if moved is None else median(moved.side(side))
    against = change * total < 0 and abs(change) > STILL  # these steps do not explain the change
    if found is None and against:
        return (
            f"The steps that were taken apart moved {side} the other way ({'+' if total > 0 else '−'}"
            f"{sig(abs(total), DIGITS)} nats a step): what moved it over the run came in other steps."
        )
    if found is None:
        says = f"{side.capitalize()} moved by {'+' if total > 0 else '−'}{sig(abs(total), DIGITS)} nats a step"
        return f"{says}{f', mostly through {way}' if way else ''}; {_unbalanced(trace, side)}."
    if trouble(trace) and own_share(trace).get(side, 1.0) < BETWEEN:
        return _between(trace, side, found)
    came = f"; {side} moved mostly through {way}" if way and not against else ""
    return f"{_outweighs(found, side)}{came}."


def _unbalanced(trace: Trace, side: str) -> str:
    """Why there is no balance of the pushes of other pairs."""
    if not kept_apart(trace):
        return "the pushes of all chosen and all rejected were not kept apart (--split-momentum)"
    does = "raise" if side == "chosen" else "lower"
    return f"taken together, {side} pushes of other pairs do not {does} it"


def _outweighs(found: Balance, side: str) -> str:
    if _level(found):
        return f"The pushes of chosen and rejected responses balance on {side}, to within the error"
    if found.together:
        return f"On {side}, chosen and rejected pushes of other pairs point the same way"
    first, second = _stronger(found, side)
    return f"On {side}, {first} pushes of other pairs outweigh {second} pushes by {_excess(found)}"


def _between(trace: Trace, side: str, found: Balance) -> str:
    """What moved a response that the steps on its own pair hardly moved."""
    share_of = "Nearly all" if abs(own_share(trace)[side]) < NEARLY else "Most"
    came = f"{share_of} of {side}'s {'fall' if side == 'chosen' else 'rise'} came in steps that train other pairs"
    if _level(found):
        return f"{came}, where chosen and rejected pushes balance on it, to within the error."
    if found.together:
        return f"{came}, whose chosen and rejected pushes point the same way on it."
    first, second = _stronger(found, side)
    whose = "whose" if first == OTHER[side] else "although their"
    return f"{came}, {whose} {first} pushes outweigh their {second} pushes on it by {_excess(found)}."


def _level(found: Balance) -> bool:
    return bool(np.isfinite(found.error) and abs(found.value) <= ERRORS * found.error)


def _stronger(found: Balance, side: str) -> tuple[str, str]:
    """Whose pushes are the stronger, and whose the weaker."""
    return (OTHER[side], side) if found.value > 0 else (side, OTHER[side])


def _excess(found: Balance) -> str:
    return f"{sig(100 * found.excess, DIGITS)}%"


def through(trace: Trace, side: str) -> str:
    """Through what most of the movement came: the largest group of pushes that has the sign of the total; empty where
    the parts were not recorded."""
    parts = means(of_side(trace, side))
    if not parts:
        return ""
    groups = {name: sum(parts[part] for part in members) for name, members in GROUPS.items()}
    total = sum(parts.values())
    along = {name: value * np.sign(total) for name, value in groups.items()}
    return max(along, key=lambda name: along[name])


def confidence(trace: Trace) -> str:
    """How the headline was obtained: pairs and basis, first order against measured, certificate, error of the balance;
    only what is known."""
    moved = run_change(trace)
    said = [
        f"Medians over {moved.basis}" if moved is not None else "",
        _first_order(trace),
        _certified(trace),
        _in_half(trace),
    ]
    found = balance(trace, own=False, side=trouble(trace) or "chosen")
    if found is not None and np.isfinite(found.error):
        size, error = (sig(100 * number, DIGITS) for number in (found.excess, found.excess_error))
        said.append("" if found.together else f"balance of pushes {size} ± {error}% (standard error)")
    return "; ".join(filter(None, said)) + "." if any(said) else ""


def _first_order(trace: Trace) -> str:
    """In how many rows the pushes' total has the sign of the measured change, on the side of the headline."""
    side = trouble(trace) or "chosen"
    keys = ["step", "rank", "pair_id"]
    rows = of_side(trace, side)[[*keys, "total"]].merge(
        trace.pairs[[*keys, f"realised_delta_{side}"]].drop_duplicates(keys), on=keys
    )
    total, measured = numbers(rows, "total"), numbers(rows, f"realised_delta_{side}")
    found = agreement(total, measured, ranks=False)
    if not found.n:
        return ""
    return f"what pushes add up to has the measured sign in {percent(found.same_sign)} of rows"


def _certified(trace: Trace) -> str:
    found = trace.about.certificate
    if found is None or found.max_relative_error is None or found.tolerance is None:
        return ""
    agrees = "agree" if found.max_relative_error <= found.tolerance else "DISAGREE"
    return f"gradients {agrees} with autograd to {sig(found.max_relative_error, DIGITS)}"


def _in_half(trace: Trace) -> str:
    """What half precision does to the cosine."""
    error, about = half_errors(trace).get("cosine_error"), trace.about.precision
    kind = about.type if about is not None and about.type else "half precision"
    return "" if error is None else f"cosine ± {sig(error, DIGITS)} ({kind})"
