"""Which case the pairs are in, why, and since when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe import entanglement
from dyn_probe.report.basis import BASES, basis_of, case_of, completed
from dyn_probe.report.changes import span, step_span
from dyn_probe.report.frames import Bins, Floats, Mask, numbers, share, step_bins, tenths
from dyn_probe.report.verdicts.verdict import Level, Number, Verdict, percent, say
from dyn_probe.trace.schema import CASES

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

LASTING = 0.2
"""A majority over a smaller part of the run's end (and over fewer than two bins) is no turning point."""
FEW = 8
"""With fewer rows than this a share is only noted."""
LEVELS: dict[int, Level] = {1: "ok", 2: "warning", 3: "warning", 4: "warning"}
REMEDIES: dict[int, tuple[str, ...]] = {
    1: (),
    2: ("normalise", "chosen", "rejected", "sft"),
    3: ("normalise", "objective"),
    4: ("objective",),
}


def broken(pairs: pd.DataFrame) -> tuple[Mask, Mask, Mask]:
    """(chosen's condition fails, rejected's condition fails, both are known): [rows] each."""
    names = ("pull_chosen", "pull_rejected", "grad_norm_chosen", "grad_norm_rejected", "grad_inner")
    columns = [numbers(pairs, name) for name in names]
    known = np.asarray(np.isfinite(columns).all(0))
    chosen, rejected = entanglement.conditions(*columns)
    return known & ~chosen, known & ~rejected, known


def reason(pairs: pd.DataFrame, case: int, basis: str) -> tuple[str, list[Number]]:
    """The share of rows whose condition fails, in words and as a number: why pairs are in case 2 or 3 of the plain
    basis; of the others, how far the pair's own condition explains it."""
    chosen, rejected, known = broken(pairs)
    if case not in (2, 3) or not known.any():
        return "", []
    what, test, mask, side = {
        2: ("chosen falls", "⟨g_w,g_l⟩ exceeds (d_w/d_l)‖g_w‖²", chosen, "chosen"),
        3: ("rejected rises", "⟨g_w,g_l⟩ exceeds (d_l/d_w)‖g_l‖²", rejected, "rejected"),
    }[case]
    part = share(mask, known)
    words = f"{what} because {test} in {percent(part)} of these rows"
    if basis != "plain":
        words = f"the pair's own condition explains that {what} in at most {percent(part)} of these rows ({test})"
    return words, [Number(f"condition_fails_{side}", f"rows in which {test}", part, "share")]


def turning(trace: Trace) -> list[Verdict]:
    """The first step from which one case holds the majority to the end of the run."""
    pairs = completed(trace)
    basis = basis_of(pairs)
    bins, case = step_bins(pairs), case_of(pairs, basis)
    found = lasting_majority(bins, case)
    if found is None:
        return []
    start, most = found
    after, known = bins.index >= start, np.isfinite(case)
    now, before = share(case == most, after & known), share(case == most, ~after & known)
    why, figures = reason(pairs[after & known], most, basis)
    when = "Over the whole run" if start == 0 else f"From step {int(bins.low[start])} on"
    sentence = f"{when}, {percent(now)} of the pair rows are in case {most} ({CASES[most]}) {BASES[basis].words}"
    sentence += f": {why}" if why else ""
    sentence += f". Case {most} has the majority in each of the {len(bins) - start} step bins"
    sentence += "." if start == 0 else f" from there on; before that step {percent(before)} of the rows were in it."
    return say(
        level_of(most, basis),
        _warned(sentence, basis),
        f"first bin of steps from which every bin has over half of its rows in one case; {BASES[basis].formula}",
        Number("first_step", "first step of the lasting majority", bins.low[start], "step"),
        Number(f"case_{most}", f"rows in case {most}", now, "share"),
        *figures,
        Number("n", "n", int((after & known).sum()), "rows"),
        change=REMEDIES[most],
    )


def level_of(case: int, basis: str) -> Level:
    """Level of a majority; a plain step on the pair alone is never as it should be: nobody trained with it."""
    return "warning" if basis == "plain" else LEVELS[case]


def _warned(sentence: str, basis: str) -> str:
    return " ".join(filter(None, (sentence, BASES[basis].warning)))


def lasting_majority(bins: Bins, case: Floats) -> tuple[int, int] | None:
    """(first bin, case) of a majority that lasts to the end over at least LASTING of the bins; None without one."""
    least = max(2, int(np.ceil(LASTING * len(bins))))
    for number in CASES:
        part = bins.means(np.where(np.isfinite(case), case == number, np.nan))
        measured = bool(np.isfinite(part).any())
        majority = (part > 0.5) | (np.isnan(part) & measured)
        against = np.flatnonzero(~majority)
        start = int(against[-1]) + 1 if len(against) else 0
        if len(bins) - start >= least:
            return start, number
    return None


def shares(trace: Trace) -> list[Verdict]:
    """Share of every case at the end and at the start; with the reason where no case holds the majority for long."""
    pairs = completed(trace)
    basis, parts = basis_of(pairs), tenths(pairs)
    rows = pairs if parts is None else pairs[parts.last]
    case = _known(rows, basis)
    if not len(case):
        return []
    most = max(CASES, key=lambda number: (case == number).mean())
    lasting = lasting_majority(step_bins(pairs), case_of(pairs, basis))
    why, figures = reason(rows, most, basis) if lasting is None else ("", [])
    sentence = f"Cases {BASES[basis].words} in {step_span(rows)}: {listed(case)}" + (f": {why}" if why else "")
    early = _known(pairs[parts.first], basis) if parts is not None else np.empty(0)
    sentence += f"; in {span(parts.first_steps)}: {listed(early)}." if parts and len(early) else "."
    clear = lasting is None and share(case == most) > 0.5 and len(case) >= FEW
    level: Level = level_of(most, basis) if clear or basis == "plain" else "note"
    return say(
        level,
        _warned(sentence, basis),
        BASES[basis].formula,
        *(Number(f"case_{n}", f"rows in case {n}", share(case == n), "share") for n in CASES),
        *(
            Number(f"case_{n}_first", f"rows in case {n}, first tenth", share(early == n), "share")
            for n in CASES
            if len(early)
        ),
        *figures,
        Number("n", "n", len(case), "rows"),
        change=REMEDIES[most] if lasting is None else (),
    )


def _known(rows: pd.DataFrame, basis: str) -> Floats:
    case = case_of(rows, basis)
    return case[np.isfinite(case)]


def listed(case: Floats) -> str:
    """Cases that occur, most frequent first: `96% in case 2 (both down), 4% in case 1 (…)`."""
    found = sorted(CASES, key=lambda number: -(case == number).mean())
    return ", ".join(f"{percent(share(case == n))} in case {n} ({CASES[n]})" for n in found if (case == n).any())
