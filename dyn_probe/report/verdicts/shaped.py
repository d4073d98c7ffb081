"""What gradient shaping did: gate, ρ and token mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dyn_probe.objectives import SHAPINGS
from dyn_probe.report import pair_columns
from dyn_probe.report.changes import span
from dyn_probe.report.frames import finite, median, numbers, share, tenths
from dyn_probe.report.run_facts import ceiling, shaping_options
from dyn_probe.report.verdicts.verdict import Level, Number, Verdict, count, percent, say, sig

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def gate(trace: Trace) -> list[Verdict]:
    """How often Gate-DPO's gate was below ½."""
    parts, value = tenths(trace.pairs), numbers(trace.pairs, "gate")
    known = finite(value if parts is None else value[parts.last])
    if not len(known):
        return []
    closed = share(known < 0.5)
    early = (
        "" if parts is None else (f" ({percent(share(finite(value[parts.first]) < 0.5))} in {span(parts.first_steps)})")
    )
    sentence = (
        f"At the end the gate{gate_constants(trace, 'alpha', 'tau')} was below ½ in {percent(closed)} of "
        f"{count(len(known), 'row')}{early}; its median is {sig(median(known))}."
    )
    return say(
        "note",
        sentence,
        "share of rows with g < ½ in the last tenth of the steps",
        Number("gate_closed", "rows with g < ½", closed, "share"),
        Number("gate", "g, median", median(known), "1"),
        Number("n", "n", len(known), "rows"),
    )


def gate_constants(trace: Trace, *names: str) -> str:
    """The run's own α and τ in brackets; nothing where run.json does not say."""
    letters = {"alpha": "α", "tau": "τ"}
    known = options_of(trace, "gate")
    values = {letters[name]: known.get(name) for name in names}
    said = [f"{letter} = {value:g}" for letter, value in values.items() if isinstance(value, int | float)]
    return f" ({', '.join(said)})" if said else ""


def options_of(trace: Trace, column: str) -> dict[str, Any]:
    """The options of the run's shaping that fills a column of the table pairs; empty where run.json does not say."""
    used = shaping_options(trace.about)
    return next((o for name, o in used.items() if name in SHAPINGS and column in SHAPINGS[name].columns), {})


def rho(trace: Trace) -> list[Verdict]:
    """How hard AdaDPO pulled on chosen, and how often ρ was at its ceiling."""
    value = finite(numbers(trace.pairs, "rho"))
    if not len(value):
        return []
    limit = options_of(trace, "rho").get("ceiling")
    known = isinstance(limit, int | float)
    top = float(limit if isinstance(limit, int | float) else np.max(value))
    reached = share(value >= top * (1 - 1e-6))  # ρ was computed in float32
    where = f"at its ceiling of {top:g}" if known else f"at its largest value, {sig(top)},"
    sentence = (
        f"AdaDPO's ρ has a median of {sig(median(value))} and is {where} in {percent(reached)} of "
        f"{count(len(value), 'row')}."
    )
    return say(
        "note",
        sentence,
        "median of ρ; share of rows with ρ = C" if known else "median of ρ; share of rows with ρ = max ρ",
        Number("rho", "ρ, median", median(value), "1"),
        Number("rho_largest", "ceiling C" if known else "largest ρ", top, "1"),
        Number("rho_at_largest", "rows at it", reached, "share"),
        Number("n", "n", len(value), "rows"),
    )


def balance(trace: Trace) -> list[Verdict]:
    """How the effective magnitudes d_w‖g_w‖ : d_l‖g_l‖ and the pulls on probabilities d_w/p_w : d_l/p_l moved."""
    parts, top = tenths(trace.pairs), ceiling(trace.about)
    if parts is None:
        return []
    columns = {
        "magnitude_ratio": pair_columns.magnitude_ratio(trace.pairs),
        "balance_token": pair_columns.balance_token(trace.pairs),
        "balance_ceiling": pair_columns.balance_ceiling(trace.pairs, top),
        "balance_raw": pair_columns.balance_raw(trace.pairs),
    }
    moved = {name: (median(values[parts.first]), median(values[parts.last])) for name, values in columns.items()}
    if not np.isfinite(list(moved.values())).all():
        return []
    words = {name: f"from {sig(first)} to {sig(last)}" for name, (first, last) in moved.items()}
    sentence = (
        f"From {span(parts.first_steps)} to {span(parts.last_steps)} the effective magnitudes d_w‖g_w‖ : d_l‖g_l‖ "
        f"moved {words['magnitude_ratio']} (median; 1 is balanced), and the pulls on probabilities, d_w/p_w : d_l/p_l "
        f"per token, {words['balance_token']}; with p_w/p_l counted up to {top:g}, {words['balance_ceiling']}. For "
        f"whole responses its logarithm moved {words['balance_raw']} nats."
    )
    return say(
        "note",
        sentence,
        "medians of the first and the last tenth of the steps; p = e^(h/n) per token and e^h of whole responses, h the "
        "log-ratio to the reference (without a reference the log-probability)",
        *(
            Number(f"{name}{key}", f"{BALANCES[name]}, {when}", value, "nats" if name == "balance_raw" else "1")
            for name, values in moved.items()
            for key, when, value in zip(("_first", ""), ("first tenth", "last tenth"), values, strict=True)
        ),
        Number("n", "n", int((parts.first | parts.last).sum()), "rows"),
    )


BALANCES = {
    "magnitude_ratio": "d_w‖g_w‖ : d_l‖g_l‖",
    "balance_token": "d_w/p_w : d_l/p_l per token",
    "balance_ceiling": "the same up to the ceiling",
    "balance_raw": "log of d_w/p_w : d_l/p_l of whole responses",
}


DEAD = 0.05
"""Mean mask of both sides below which the masks are called dead: nothing is trained."""
FLAT = 0.1
"""Standard deviation of the masks within pairs below which they are said to choose nothing."""


def mask(trace: Trace) -> list[Verdict]:
    """How far the token mask is closed, whether it died or chose nothing; and whose gradients were recorded."""
    parts, names = tenths(trace.pairs), ("mask_chosen", "mask_rejected", "mask_spread")
    columns = [numbers(trace.pairs, name) for name in names]
    late = [finite(values if parts is None else values[parts.last]) for values in columns]
    if not len(late[0]) or not len(late[1]):
        return []
    kept = [float(np.mean(side)) for side in late[:2]]
    spread = float(np.mean(late[2])) if len(late[2]) else float("nan")
    level, judgement = _judged(max(kept), spread)
    sentence = (
        f"The mean token mask at the end is {sig(kept[0])} on chosen and {sig(kept[1])} on rejected tokens{judgement}. "
        "The gradient norms, inner products and pulls of this run are those of the masked log-probabilities, so they "
        "predict nothing about the unmasked ones."
    )
    return say(
        level,
        sentence,
        "mean of m over response tokens, last tenth of the steps; spread: standard deviation of m over a pair's "
        "tokens; rows are Σ_t m^t·log π^t",
        Number("mask_chosen", "m_w, mean", kept[0], "1"),
        Number("mask_rejected", "m_l, mean", kept[1], "1"),
        *([] if np.isnan(spread) else [Number("mask_spread", "spread of m in a pair, mean", spread, "1")]),
        Number("n", "n", len(late[0]), "rows"),
    )


def _judged(largest: float, spread: float) -> tuple[Level, str]:
    """Level, and what the masks came to."""
    if largest < DEAD:
        return "warning", ": the masks died, so hardly anything is trained; lower penalty or raise wait of the shaping"
    if spread < FLAT:
        words = (
            f": within a pair they differ by {sig(spread, 2)} (standard deviation), so they select nothing. The "
            "log-ratios did not yet say which tokens matter; train longer, or raise readout_lr"
        )
        return "warning", words
    return "note", "" if np.isnan(spread) else f", with a standard deviation of {sig(spread, 2)} within a pair"


def masked(trace: Trace) -> bool:
    """Whether the run's gradients are those of masked log-probabilities."""
    return bool(len(finite(numbers(trace.pairs, "mask_chosen"))))
