"""What moved chosen and rejected: the optimizer's step taken apart, in order of size.

Pushes are shares of the step as it was applied. They say what moved a response, and not what would happen without one
of them: no sentence here turns a push into advice to leave something out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dyn_probe.report.frames import finite, median, numbers
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.push_parts import PARTS, Balance, balance, means, of_side, ordered
from dyn_probe.report.verdicts.status import OTHER_TERMS
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, percent, say, sig, signed
from dyn_probe.trace.run_fields import PushesInfo

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

SMALL = 0.001
"""Parts below this share of the largest are left out of the sentence."""
HALF = ("bfloat16", "float16")
UNMOVED = 0.5
"""Share of the weights that a typical step leaves as they were, from which on half precision is warned about."""
ERRORS = 2.0
"""A balance within this many standard errors of 0 is called level."""
LEVELS = 2.0
"""Likelihood weight that is named, as a multiple of what first order asks for: in trials chosen stayed level with one
to three times that."""
CLOSE = 0.01
"""A balance below this is the difference of two sums that nearly cancel: no weight is named from it."""


def moved(trace: Trace) -> list[Verdict]:
    """The pushes on both sides, a step, in order of size."""
    found = [_side(trace, side) for side in SIDES]
    sentences = [sentence for sentence, _ in found if sentence]
    if not sentences:
        return []
    return say(
        "note",
        f"{' '.join(sentences)} These are shares of the steps as the optimizer applied them, {_rows(trace)}.",
        "mean over recorded rows of ⟨g_i, Δθ⟩ (total) and its parts: −ωκc_w⟨g_i, P g_w⟩, −ωκc_l⟨g_i, P g_l⟩ (the "
        "pair's own), −ω⟨g_i, P G⟩ less both (others), −⟨g_i, p⟩ (past), weight decay, and what the stored "
        "weights lost (rounding)",
        *(number for _, numbers_of in found for number in numbers_of),
    )


def _rows(trace: Trace) -> str:
    pushes = of_side(trace, "chosen")
    return f"averaged over the pairs of {count(int(pushes['step'].nunique()), 'recorded step')}"


def _side(trace: Trace, side: str) -> tuple[str, list[Number]]:
    """The sentence about one side and its numbers; nothing where its total was not recorded."""
    rows = of_side(trace, side)
    totals = finite(numbers(rows, "total"))
    if not len(totals):
        return "", []
    total, parts = float(totals.mean()), means(rows)
    known = [Number(f"push_total_on_{side}", f"total push on {side}", total, "nats")]
    known += [
        Number(f"push_{name}_on_{side}", f"push on {side}: {PARTS[name]}", value, "nats")
        for name, value in ordered(parts)
    ]
    found = finite(numbers(trace.pairs, f"realised_delta_{side}"))
    measured = ""
    if len(found):
        known.append(Number(f"realised_mean_{side}", f"realised change of {side}, mean", float(found.mean()), "nats"))
        measured = f" (measured {signed(float(found.mean()))})"
    known.append(Number(f"n_{side}", f"n, {side}", len(totals), "rows"))
    return f"In a step on its own pair {side} {_direction(total)}{measured}: {_listed(trace, parts)}.", known


def _direction(total: float) -> str:
    return f"{'falls' if total < 0 else 'rises'} {sig(abs(total))} nats"


def _listed(trace: Trace, parts: dict[str, float]) -> str:
    """The parts with figures, largest first."""
    if not parts:
        why = _reason(trace)
        return "its parts were not recorded" + (f" ({why})" if why else "")
    largest = max(abs(value) for value in parts.values())
    beyond = median(numbers(trace.steps, "other_terms")) > OTHER_TERMS
    words = {**PARTS, "others": "other pairs and other terms of the loss"} if beyond else PARTS
    return ", ".join(f"{words[name]} {signed(value)}" for name, value in ordered(parts) if abs(value) > SMALL * largest)


def _reason(trace: Trace) -> str:
    note = trace.about.pushes
    return (note.reason or "") if note is not None else ""


def outweighed(trace: Trace) -> list[Verdict]:
    """The balance of all chosen and all rejected pushes on the chosen responses, with its error."""
    found = balance(trace)
    if found is None:
        return []
    part, error = _share(found)
    if np.isfinite(found.error) and abs(found.value) <= ERRORS * found.error:
        sentence = (
            "In the steps that train on them, the rejected and chosen pushes of all pairs balance on the chosen "
            f"responses, to within the error ({part}{error})."
        )
    elif found.together:
        sentence = "Chosen and rejected pushes both raise the chosen responses, in the steps that train on them."
    elif found.value > 0:
        sentence = (
            f"Rejected pushes of all pairs outweigh chosen pushes by {part}{error} on the chosen responses, in the "
            "steps that train on them."
        )
    else:
        sentence = (
            f"Chosen pushes of all pairs outweigh rejected pushes by {part}{error} on the chosen responses, in the "
            "steps that train on them."
        )
    return say(
        "note",
        sentence,
        "−Σ all_rejected / Σ all_chosen − 1 over the chosen rows: pushes of all pairs, of this step and through the "
        "momentum; standard error by resampling pairs 200 times",
        Number("balance", "rejected over chosen pushes, on chosen responses", found.value, "share"),
        *([Number("balance_error", "its standard error", found.error, "share")] if np.isfinite(found.error) else []),
        Number("n", "n", found.pairs, "pairs"),
    )


def between(trace: Trace) -> list[Verdict]:
    """The same balance without each row's own pair: what moves a response in all the steps that train on other pairs,
    and what would level it."""
    found = balance(trace, own=False)
    if found is None or (np.isfinite(found.error) and abs(found.value) <= ERRORS * found.error):
        return []
    falls, weight = found.value > 0, level_weight(trace)
    level, (part, error) = bool(np.isfinite(weight)), _share(found)
    first, second = ("Rejected", "chosen") if falls else ("Chosen", "rejected")
    outweigh = f"{first} pushes of other pairs outweigh their {second} pushes by {part}{error} on the chosen responses"
    if found.together:
        outweigh = "Chosen and rejected pushes of other pairs point the same way on the chosen responses"
    sentence = (
        f"{outweigh}: they {'lower' if falls else 'raise'} a chosen response in the steps that do not train on it, "
        "which are most."
    )
    if falls and found.value < CLOSE:
        sentence += (
            " Both nearly cancel, and what is left decides, so no likelihood weight is named: in trials with pushes "
            "this close the weight that first order asks for took away a tenth to a third of the fall."
        )
    if level:
        sentence += (
            f" A likelihood term raises d_w/d_l: --set nll={weight:.2g} (TRL: loss_weights=[1.0, {weight:.2g}], with "
            f"'sft' behind the run's loss_type) is {LEVELS:.0f} times what levels it to first order; in trials chosen "
            "stayed level with one to three times that."
        )
    return say(
        "warning" if falls else "note",
        sentence,
        "−Σ(all_rejected − own_rejected) / Σ(all_chosen − own_chosen) − 1 over the chosen rows, standard error by "
        "resampling pairs 200 times; λ of the mean over a batch's chosen tokens = 2 · balance · mean d_w · mean n_w, "
        "beside what the run has",
        Number(
            "balance_between", "rejected over chosen pushes of other pairs, on chosen responses", found.value, "share"
        ),
        *([Number("between_error", "its standard error", found.error, "share")] if np.isfinite(found.error) else []),
        *([Number("level_weight", "λ that levels it", weight, "1")] if level else []),
        Number("n", "n", found.pairs, "pairs"),
        change=("normalise", "chosen", "rejected", "sft") if falls else (),
    )


def level_weight(trace: Trace) -> float:
    """λ of a likelihood term, averaged over a batch's chosen tokens, that levels what other pairs do to chosen: LEVELS
    times balance · mean d_w · mean n_w, since λ adds λ/n̄_w to d_w, on what the run has.

    NaN where chosen pushes are not outweighed by CLOSE and more than ERRORS standard errors, and where the run averages
    such a term otherwise."""
    found = balance(trace, own=False)
    if found is None or found.value < CLOSE or (np.isfinite(found.error) and found.value <= ERRORS * found.error):
        return float("nan")
    share = LEVELS * found.value
    pulls, lengths = (finite(numbers(trace.pairs, name)) for name in ("pull_chosen", "len_chosen"))
    present = likelihood_weight(trace.about.objective.hyper)
    other_mean = present and trace.about.objective.hyper.get("nll_mean", "batch") != "batch"
    if not len(pulls) or not len(lengths) or not pulls.mean() > 0 or other_mean:
        return float("nan")
    return float(present + share * pulls.mean() * lengths.mean())


def likelihood_weight(hyper: Mapping[str, Any]) -> float:
    """Weight of the likelihood term that a run has beside its loss: ours (`nll`), or that of TRL's trainers (the weight
    of the loss type `sft`, `cpo_alpha`)."""
    terms = dict(zip(hyper.get("loss_type") or (), hyper.get("loss_weights") or (), strict=False))
    return float(hyper.get("nll") or terms.get("sft") or hyper.get("cpo_alpha") or 0.0)


def _share(found: Balance) -> tuple[str, str]:
    """The balance's size in per cent and its error in brackets, with two digits where it is below one per cent."""
    size, error = 100 * found.excess, 100 * found.excess_error
    digits = (lambda number: f"{number:.1f}") if size >= 1 else (lambda number: sig(number, 2))
    return f"{digits(size)} %", f" (± {digits(error)})" if np.isfinite(error) else ""


WIDE, MISSED = ("float32", "float64"), 1e-2
"""Types that hold every step, and the share of the parts' sizes that cannot be missed by rounding in them."""


def untrusted(trace: Trace) -> list[Verdict]:
    """Whether the parts failed to add up to the step."""
    note, lost = trace.about.pushes, numbers(trace.steps, "lost_share")
    worst = finite(numbers(trace.steps, "law7_error") - np.nan_to_num(lost))
    if note is None or note.trusted is None:
        missed = trace.about.config.get("dtype") in WIDE and len(worst) and worst.max() > MISSED
        note = PushesInfo(None, False, None, float(worst.max())) if missed else None
    if note is None or note.trusted is not False:
        return []
    at = "" if note.step is None else f" at step {note.step}"
    size = "" if note.law7_error is None else f": they miss it by {sig(note.law7_error, 2)} of their sizes"
    known = [] if note.law7_error is None else [Number("law7_error", "largest miss", note.law7_error, "1")]
    single = not len(finite(lost)) and trace.about.config.get("dtype") == "float32"
    if single and note.law7_error is not None and note.law7_error <= MISSED:
        return say(
            "note",
            f"The parts of the pushes miss the step that the weights made{at} by {sig(note.law7_error, 2)} of their "
            "sizes. Storing float32 weights can lose as much of a small step; this trace does not say whether it "
            "did.",
            "|rounding| / Σ|parts| above 1e-4, in float32, without a comparison of the stored weights",
            *known,
        )
    return say(
        "warning",
        f"The pushes are not to be trusted: their parts do not add up to the step that the weights made{at}{size}.",
        "|rounding| / Σ|parts| against the tolerance of the weights' type; pushes.trusted in run.json",
        *known,
    )


def unheld(trace: Trace) -> list[Verdict]:
    """Whether weights in half precision lose the steps that they are given."""
    unmoved = median(numbers(trace.steps, "unmoved_share"))
    kind = str(trace.about.config.get("dtype") or "")
    if not (unmoved > UNMOVED and (kind in HALF or (not kind and _lost(trace)))):
        return []
    return say(
        "warning",
        f"These weights cannot hold this learning rate: a typical step leaves {percent(unmoved)} of them as they were, "
        "because it is below the resolution of their type. Keep the weights in float32, or raise the rate.",
        "median of unmoved_share over the recorded steps, weights in half precision",
        Number("unmoved", "weights that a step does not move, median", unmoved, "share"),
    )


def _lost(trace: Trace) -> bool:
    """Whether rounding is a sizeable part of the pushes although these are trusted: the mark of half precision."""
    note = trace.about.pushes
    return median(numbers(trace.steps, "law7_error")) > 0.01 and (note is None or note.trusted is not False)


def lacking(trace: Trace) -> list[Verdict]:
    """What a trace without pushes cannot say."""
    if not len(trace.pairs) or len(finite(numbers(trace.pushes, "total"))):
        return []
    if trace.about.scan is not None:
        return say(
            "note",
            "Nothing was trained here: the pairs were measured at saved checkpoints. What moved chosen and rejected "
            "between them is not known; a recorded training says it.",
            "scan in run.json",
        )
    why = _reason(trace) or "record with --metric-every to take the optimizer's steps apart"
    return say(
        "warning",
        f"What moved chosen and rejected is not known: this trace has no pushes ({why}). What it says about the pair "
        "alone is not what the optimizer did.",
        "rows of the table pushes; pushes.reason in run.json",
    )
