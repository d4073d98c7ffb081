"""The theorems of the entanglement paper as a page: each formula beside autograd for several seeds, and two sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from dyn_probe.report.output import check_folder
from dyn_probe.report.style import CASE_COLOURS, NEUTRAL, SIDE_COLOURS, name_panel, new_figure, rule
from dyn_probe.report.verdicts import sig
from dyn_probe.studies.claims import FAILS, HOLDS, Finding
from dyn_probe.studies.page import write_page
from dyn_probe.studies.theory import STATEMENTS, Checked, after_difference, assumption, logit_change, theorem_1

Runs = Mapping[int, Sequence[Checked]]
"""Seed → the statements as they came out."""

TOLERANCE = 1e-9
SIGNS = {
    "Theorem 1, inner product": -1, "Theorem 1, chosen": 1, "Theorem 1, rejected": 1, "Corollary 2, chosen": 1,
    "Corollary 2, rejected": -1, "Theorem 3, before m": 0, "Theorem 3, at m": 1, "Theorem 3, after m": -1,
}  # fmt: skip
"""Statement → the sign that the paper gives it."""
MASSES = (2, 3, 4, 6, 8, 12, 16, 24, 32)
SHIFTS = np.linspace(-3, 3, 25)


def run_statements(seeds: int) -> dict[int, list[Checked]]:
    """Every statement with each seed."""
    return {seed: [one for check in STATEMENTS.values() for one in check(seed=seed)] for seed in range(seeds)}


def claims(runs: Runs) -> list[Finding]:
    """Every statement: autograd gives the formula's number with the paper's sign, with every seed."""
    by_name: dict[str, list[Checked]] = {}
    for rows in runs.values():
        for one in rows:
            by_name.setdefault(one.name, []).append(one)
    return [_claim(name, rows) for name, rows in by_name.items()] + [counterexample()]


def _claim(name: str, rows: Sequence[Checked]) -> Finding:
    error, sign = max(one.error for one in rows), SIGNS[name]
    holds = error < TOLERANCE and all(np.sign(round(one.measured, 12)) == sign for one in rows)
    shown = "; ".join(f"{one.predicted:+.6f} and {one.measured:+.6f}" for one in rows)
    said = f"largest difference {sig(error, 2)}"
    return Finding(name, rows[0].formula, said, holds, shown, HOLDS if holds else FAILS)


def counterexample() -> Finding:
    """Where the chosen beginning makes the shared token less probable, Theorem 3's assumption fails and so does its
    sign."""
    (measured, fails), expected = changes([1.5])[0], "the assumption fails, change > 0"
    holds = fails and measured > 0
    name = "Theorem 3, after m, without the assumption"
    return Finding(name, expected, f"change {measured:+.6f}", holds, f"{measured:+.6f}", HOLDS if holds else FAILS)


def changes(shifts: Sequence[float], vocabulary: int = 6, token: int = 2) -> list[tuple[float, bool]]:
    """For each shift of the shared token's logit after the rejected beginning: the change of that token in chosen by
    autograd, and whether the assumption of Theorem 3 fails."""
    behind = torch.zeros(vocabulary, dtype=torch.float64)
    found = []
    for shift in shifts:
        other = behind.clone()
        other[token] += float(shift)
        fails = not assumption(behind.softmax(0), other.softmax(0), token)
        found.append((logit_change(behind, other, token, token)[0], fails))
    return found


def figure_1(runs: Runs) -> Figure:
    """Theorem 1: ‖g_w‖² and ⟨g_w,g_l⟩ over ‖h‖², dots by autograd, lines by the formulas, for mass on M tokens. The
    inner product of responses of one token is negative, so that neither condition can be violated."""
    figure, (ax,) = new_figure(1, height=3.2, width=6.4)
    name_panel(ax, "One token, mass uniform on M tokens", "over ‖h‖²", "M")
    found = [theorem_1(tokens=count) for count in MASSES]
    size = -MASSES[0] * found[0][0].predicted
    for place, colour, label in ((0, NEUTRAL, "⟨g_w,g_l⟩"), (1, SIDE_COLOURS["chosen"], "‖g_w‖²")):
        ax.plot(MASSES, [rows[place].predicted / size for rows in found], color=colour, linewidth=1.5)
        ax.plot(MASSES, [rows[place].measured / size for rows in found], "o", color=colour, markersize=5, label=label)
    rule(ax, 0)
    ax.legend(frameon=False, fontsize=8)
    return figure


def figure_3(runs: Runs) -> Figure:
    """Theorem 3 after the first difference: change of the shared token in chosen under g_w − g_l, the logits the only
    parameter, against how much more probable the rejected beginning makes that token (shift of its logit). Dots by
    autograd, line by the formula; the assumption holds to the left of 0, and the change is negative there."""
    figure, (ax,) = new_figure(1, height=3.2, width=6.4)
    name_panel(ax, "Shared token after the difference", "change of its log-probability", "shift of its logit")
    zero, token = torch.zeros(6, dtype=torch.float64), 2
    shifted = [zero + shift * torch.nn.functional.one_hot(torch.tensor(token), 6) for shift in SHIFTS]
    line = [after_difference(zero.softmax(0), one.softmax(0), token) for one in shifted]
    measured = changes([float(shift) for shift in SHIFTS])
    ax.plot(SHIFTS, line, color=NEUTRAL, linewidth=1.5)
    for wrong, colour, label in ((False, CASE_COLOURS[1], "assumption holds"), (True, CASE_COLOURS[2], "fails")):
        at = [k for k, (_, fails) in enumerate(measured) if fails is wrong]
        ax.plot(SHIFTS[at], [measured[k][0] for k in at], "o", color=colour, markersize=5, label=label)
    rule(ax, 0)
    ax.legend(frameon=False, fontsize=8)
    return figure


FIGURES: dict[str, tuple[Callable[[Runs], Figure], str]] = {
    "theorem_1": (figure_1, "Theorem 1"),
    "theorem_3": (figure_3, "Theorem 3"),
}


def write_study(runs: Runs, out: Path, force: bool = False) -> tuple[Path, list[Finding]]:
    """Judge and draw; returns the page (report.html, its figures and claims.csv beside it) and the claims.

    Raises:
        BadInput: ``out`` holds something other than a report.
    """
    check_folder(out, force)
    judged = claims(runs)
    data = {"seeds": len(runs), "tolerance": f"{TOLERANCE:g}"}
    return write_page(out, "theory.html.j2", FIGURES, runs, judged, data), judged
