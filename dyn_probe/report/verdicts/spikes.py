"""Spikes and zeros of the gradient norm, attributed to norms, pulls or cancellation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report import pair_columns
from dyn_probe.report.frames import Floats, finite, median, numbers, share
from dyn_probe.report.verdicts.verdict import Number, Verdict, count, percent, say, sig

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

TIMES = 4.0
"""A spike: a step whose gradient norm is over TIMES the running median of the WINDOW steps around it."""
WINDOW = 31
CLEAR = 2.0
"""A part is named as the cause of a spike where it is over CLEAR times its usual value."""
FORMULA = (
    f"grad_norm over {TIMES:g} × the running median of {WINDOW} steps; parts: strongest pair "
    "over the median of the pairs of these steps"
)


def step_norms(trace: Trace) -> pd.Series:
    """Gradient norm before clipping by step, the largest over ranks; steps without one are left out."""
    norms = pd.Series(numbers(trace.steps, "grad_norm"), index=trace.steps["step"].to_numpy())
    return norms[np.isfinite(norms)].groupby(level=0).max().sort_index()


def spikes(trace: Trace) -> list[Verdict]:
    """Steps whose gradient norm stands out from the steps around them, and what caused the largest."""
    norms = step_norms(trace)
    if len(norms) < 10:
        return []
    usual = norms.rolling(WINDOW, center=True, min_periods=1).median()
    times = (norms / usual.where(usual > 0)).fillna(0).to_numpy()
    over, largest, n = int((times > TIMES).sum()), int(times.argmax()), Number("n", "n", len(norms), "steps")
    if not over:
        calm = (
            f"The gradient norm has no spikes: none of {len(norms)} steps exceeds {TIMES:g} times the running median."
        )
        return say("ok", calm, FORMULA, _largest_over_median(times[largest]), n)
    step, norm = int(norms.index[largest]), float(norms.iloc[largest])
    cause, parts = _cause(trace.pairs, step)
    sentence = (
        f"The gradient norm spikes in {over} of {len(norms)} steps, most strongly at step {step}: {sig(norm)}, "
        f"{sig(times[largest])} times the running median. {cause}"
    )
    return say(
        "note",
        sentence,
        FORMULA,
        _largest_over_median(times[largest]),
        Number("spikes", "spikes", over, "steps"),
        *parts,
        n,
        change=("data", "lr"),
    )


def _largest_over_median(times: float) -> Number:
    return Number("largest", "largest norm over running median", float(times), "1")


def _cause(pairs: pd.DataFrame, step: int) -> tuple[str, list[Number]]:
    """Which part of the step's strongest pair is unusual: the norms, the pulls, or less cancellation."""
    steps = numbers(pairs, "step")
    here, around = pairs[steps == step], pairs[(steps != step) & (np.abs(steps - step) <= WINDOW)]
    strength = pair_columns.pair_grad_norm(here)
    if not np.isfinite(strength).any() or not len(around):
        return "No pair gradients were recorded at this step, so the cause is unknown.", []
    top = here.iloc[[int(np.nanargmax(strength))]]
    usual = {key: median(part(around)) for key, (_, part) in PARTS.items()}
    factors = {key: float(PARTS[key][1](top)[0]) / value for key, value in usual.items() if value > 0}
    figures = [
        Number(f"{key}_factor", f"{PARTS[key][0]}, largest pair over usual", v, "1") for key, v in factors.items()
    ]
    key = max(factors, key=lambda key: factors[key], default="")
    if not key or factors[key] < CLEAR:
        words = "None of its recorded pairs has unusual norms, pulls or cancellation: the cause was not recorded."
        return words, figures
    pair = top["pair_id"].iloc[0]
    words = f"The pair with the largest gradient is {pair}: its {PARTS[key][0]} is {sig(factors[key])} times the usual."
    return words, figures


def _largest(name: str) -> Callable[[pd.DataFrame], Floats]:
    return lambda rows: np.fmax(*(np.abs(numbers(rows, f"{name}_{side}")) for side in pair_columns.SIDES))


def _left_over(rows: pd.DataFrame) -> Floats:
    """‖d_w g_w − d_l g_l‖ over its norm at cosine 0: small where the two gradients cancel."""
    sides = (numbers(rows, f"pull_{side}") * numbers(rows, f"grad_norm_{side}") for side in pair_columns.SIDES)
    whole = np.hypot(*sides)
    return np.divide(pair_columns.pair_grad_norm(rows), whole, out=np.full(len(whole), np.nan), where=whole > 0)


PARTS: dict[str, tuple[str, Callable[[pd.DataFrame], Floats]]] = {
    "norm": ("gradient norm max(‖g_w‖, ‖g_l‖)", _largest("grad_norm")),
    "pull": ("pull max(|d_w|, |d_l|)", _largest("pull")),
    "uncancelled": ("uncancelled share of d_w g_w and d_l g_l", _left_over),
}
"""Key → what it is in words, and its value in each row."""


def zeros(trace: Trace) -> list[Verdict]:
    """Steps, pulls and gradients that are exactly 0."""
    norms = step_norms(trace)
    still = int((norms == 0).sum())
    pulls = [numbers(trace.pairs, f"pull_{side}") for side in pair_columns.SIDES]
    known = np.asarray(np.isfinite(pulls).all(0))
    idle = share((pulls[0] == 0) & (pulls[1] == 0), known)
    responses = np.concatenate([finite(numbers(trace.pairs, f"grad_norm_{side}")) for side in pair_columns.SIDES])
    flat = share(responses == 0)
    if not (still or idle > 0 or flat > 0):
        return []
    said = [
        f"the gradient norm of the step is 0 in {still} of {len(norms)} steps" if len(norms) else "",
        f"both pulls are 0 in {percent(idle)} of {count(int(known.sum()), 'pair row')}" if known.any() else "",
        f"{percent(flat)} of {len(responses)} responses have a gradient of exactly 0" if len(responses) else "",
    ]
    return say(
        "warning" if still > len(norms) / 2 or flat > 0.01 else "note",
        f"Zero gradients: {'; '.join(filter(None, said))}.",
        "grad_norm = 0; d_w = d_l = 0; ‖g_w‖ = 0 or ‖g_l‖ = 0",
        Number("zero_steps", "steps with gradient norm 0", still, "steps"),
        Number("zero_pulls", "rows with d_w = d_l = 0", idle, "share"),
        Number("zero_gradients", "responses with gradient norm 0", flat, "share"),
        change=("objective", "data"),
    )
