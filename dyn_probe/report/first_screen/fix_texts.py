"""The fix table as text: for the page and for the terminal."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dyn_probe.report.first_screen.fix_table import Estimate, fix_table, method_of, why_none
from dyn_probe.report.first_screen.remedy_rows import REMEDIES
from dyn_probe.report.first_screen.trouble import trouble
from dyn_probe.report.first_screen.whole_command import whole_command
from dyn_probe.report.verdicts.advice import KNOBS
from dyn_probe.report.verdicts.verdict import sig
from dyn_probe.trace.references import is_reference

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

RULE = (
    "First-order estimates of where the same run would have ended, nats/token, ± the spread over pairs and the "
    "estimate's own miss of this run (of a margin, a fifth of the run's too), ordered by {side} per margin "
    "lost{beyond}{tried}."
)
MOST = 8
"""Remedies that are shown."""
CANNOT = "cannot tell"
NOT_IN_TRL = "not in TRL"
BEYOND = "?"
REACHED = 1.1
"""Margin over that of the run as it was, up to which it is named: in trials estimates beyond were up to three times the
measured ones."""


def places(value: float, digits: int = 2) -> int:
    """Decimals that leave `digits` significant digits, two at least and four at most."""
    return 2 if not value else min(4, max(2, digits - 1 - math.floor(math.log10(abs(value)))))


def change_text(value: float, decimals: int) -> str:
    """A change with its sign, in so many decimals."""
    text = f"{abs(value):.{decimals}f}"
    return ("" if not float(text) else "−" if value < 0 else "+") + text


def fixes(trace: Trace) -> dict[str, Any]:
    """The fix table as text: a row per remedy and one for the run as it was; `none` says why there is no table."""
    none, side = why_none(trace), trouble(trace) or "chosen"
    found = [] if none else fix_table(trace)[:MOST]
    rows = [fix_row(row, side) | {"whole": whole_command(trace.manifest, row.change.typed, row.key)} for row in found]
    rule = RULE.format(
        side="less rise of rejected" if side == "rejected" else "Δ chosen",
        beyond=f" ({BEYOND}: beyond what this run reached)" if any(row["margin"] == BEYOND for row in rows) else "",
        tried=_tried(trace),
    )
    return {
        "none": none,
        "trained_by_trl": "trainer" in trace.manifest,
        "side": side,
        "was": was_text(found[0], side) if found else {},
        "rows": rows,
        "rule": rule + _unknown(trace),
    }


def _tried(trace: Trace) -> str:
    """The command that goes on from here; a reference trace cannot be trained again where it lies."""
    if is_reference(trace.path):
        return ""
    what = "prints their settings for TRL" if "trainer" in trace.manifest else "measures them"
    return f"; dyn-probe try {shlex.quote(str(trace.path))} {what}"


def _unknown(trace: Trace) -> str:
    """What is left out where the pulls of the run's method are not known as functions of the log-probabilities."""
    if method_of(trace.about).objective is not None:
        return ""
    named = " with ".join([str(trace.about.objective.name), *(one.name for one in trace.about.objective.shaping)])
    return (
        f" There is no closed form of the pulls of {named}: the run is replayed with its recorded pulls, and its own "
        "β, shapings and likelihood term are not varied."
    )


def by_table(trace: Trace, knobs: Iterable[str]) -> list[str]:
    """Advice in the order of the run's fix table, what the table does not have last."""
    ranks: dict[str, int] = {}
    for number, row in enumerate(fix_table(trace)):
        ranks.setdefault(KNOBS.get(REMEDIES[row.key].advice, ""), number)
    return sorted(knobs, key=lambda text: ranks.get(text, len(REMEDIES)))


def fix_lines(table: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The fix table for the terminal: heads, the run as it was, and a row per remedy."""
    theirs = bool(table["trained_by_trl"])
    heads = ("", f"Δ {table['side']}", "margin", "settings of TRL" if theirs else "options of dyn-probe record")
    what = [(row["trl"] or NOT_IN_TRL) if theirs else row["typed"] for row in table["rows"]]
    rows = [(row["words"], row["effect"], row["margin"], one) for row, one in zip(table["rows"], what, strict=True)]
    return [heads, ("As trained", table["was"]["effect"], table["was"]["margin"], ""), *rows]


def fix_row(row: Estimate, side: str) -> dict[str, Any]:
    """One remedy: words, Δ of the trouble's side with its error, the margin then, what to type, TRL's setting."""
    value = row.chosen if side == "chosen" else row.rejected
    decimals = places(row.error, 1)
    effect = f"{change_text(value, decimals)} ± {row.error:.{decimals}f}"
    return {
        "key": row.key,
        "words": row.words,
        "effect": effect if row.told else f"{CANNOT} ({effect})",
        "told": row.told,
        "margin": margin_text(row.margin, row.cost, row.margin_error),
        "typed": row.change.typed,
        "trl": row.change.trl,
        "chosen": row.chosen,
        "rejected": row.rejected,
        "error": row.error,
        "cost": row.cost,
    }


def margin_text(margin: float, cost: float, error: float = float("nan")) -> str:
    """The margin that the run would have ended with, nats/token; BEYOND where the recorded run never came that far."""
    if margin - cost > REACHED * abs(margin):
        return BEYOND
    if not math.isfinite(error):
        return sig(margin - cost, 2)
    decimals = places(error, 1) - 1 if error >= 0.1 else places(error, 1)
    return f"{margin - cost:.{decimals}f} ± {error:.{decimals}f}".replace("-", "−")


def was_text(row: Estimate, side: str) -> dict[str, str]:
    """The run as it was trained: what a remedy's numbers stand beside."""
    value = (row.chosen - row.gain) if side == "chosen" else (row.rejected + row.gain)
    return {"effect": change_text(value, 2), "margin": sig(row.margin, 2)}
