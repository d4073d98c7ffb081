"""Spikes and zeros of the gradient norm, split into norms, pulls and cancellation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dyn_probe.report import derived
from dyn_probe.report.frames import Floats, finite, median, numbers, share
from dyn_probe.report.verdicts.verdict import Number, Verdict, percent, say, sig

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
    """Steps whose gradient norm stands out from the steps around them, and what made the largest."""
    norms = step_norms(trace)
    if len(norms) < 10:
        return []
    usual = norms.rolling(WINDOW, center=True, min_periods=1).median()
    times = (norms / usual.where(usual > 0)).fillna(0).to_numpy()
    over, largest, n = int((times > TIMES).sum()), int(times.argmax()), Number("n", len(norms), "steps")
    if not over:
        calm = (
            f"The gradient norm has no spikes: none of {len(norms)} steps exceeds {TIMES:g} times the running median."
        )
        return say("ok", calm, FORMULA, Number("largest norm over running median", times[largest], "1"), n)
    step, norm = int(norms.index[largest]), float(norms.iloc[largest])
    cause, parts = _cause(trace.pairs, step)
    sentence = (
        f"The gradient norm spikes in {over} of {len(norms)} steps, most at step {step}: {sig(norm)} "
        f"nats/parameter unit, {sig(times[largest])} times the running median. {cause}"
    )
    return say(
        "note",
        sentence,
        FORMULA,
        Number("largest norm over running median", times[largest], "1"),
        Number("spikes", over, "steps"),
        *parts,
        n,
        change=("data", "lr"),
    )


def _cause(pairs: pd.DataFrame, step: int) -> tuple[str, list[Number]]:
    """Which part of the step's strongest pair is unusual: the norms, the pulls, or less cancellation."""
    steps = numbers(pairs, "step")
    here, around = pairs[steps == step], pairs[(steps != step) & (np.abs(steps - step) <= WINDOW)]
    strength = derived.pair_grad_norm(here)
    if not np.isfinite(strength).any() or not len(around):
        return "No pair gradients were recorded at this step, so the cause is not known.", []
    top = here.iloc[[int(np.nanargmax(strength))]]
    usual = {name: median(part(around)) for name, part in PARTS.items()}
    factors = {name: float(PARTS[name](top)[0]) / value for name, value in usual.items() if value > 0}
    figures = [Number(f"{name}, strongest pair over usual", value, "1") for name, value in factors.items()]
    name = max(factors, key=lambda key: factors[key], default="")
    if not name or factors[name] < CLEAR:
        words = "No recorded pair of it has unusual norms, pulls or cancellation: the cause was not recorded."
        return words, figures
    words = f"Its strongest pair is {top['pair_id'].iloc[0]}: {name} {sig(factors[name])} times the usual."
    return words, figures


def _largest(name: str) -> Callable[[pd.DataFrame], Floats]:
    return lambda rows: np.fmax(*(np.abs(numbers(rows, f"{name}_{side}")) for side in derived.SIDES))


def _left_over(rows: pd.DataFrame) -> Floats:
    """‖d_w g_w − d_l g_l‖ over its norm at cosine 0: small where the two gradients cancel."""
    sides = (numbers(rows, f"pull_{side}") * numbers(rows, f"grad_norm_{side}") for side in derived.SIDES)
    apart = np.hypot(*sides)
    return np.divide(derived.pair_grad_norm(rows), apart, out=np.full(len(apart), np.nan), where=apart > 0)


PARTS: dict[str, Callable[[pd.DataFrame], Floats]] = {
    "gradient norms max(‖g_w‖, ‖g_l‖)": _largest("grad_norm"),
    "pulls max(|d_w|, |d_l|)": _largest("pull"),
    "what the cosine leaves of the two": _left_over,
}


def zeros(trace: Trace) -> list[Verdict]:
    """Steps without any gradient and rows without any pull: is it the pulls or the norms?"""
    norms = step_norms(trace)
    still = int((norms == 0).sum())
    pulls = [numbers(trace.pairs, f"pull_{side}") for side in derived.SIDES]
    known = np.asarray(np.isfinite(pulls).all(0))
    idle = share((pulls[0] == 0) & (pulls[1] == 0), known)
    responses = np.concatenate([finite(numbers(trace.pairs, f"grad_norm_{side}")) for side in derived.SIDES])
    flat = share(responses == 0)
    if not (still or idle > 0 or flat > 0):
        return []
    said = [
        f"the norm of the step is 0 in {still} of {len(norms)} steps" if len(norms) else "",
        f"{percent(idle)} of {int(known.sum())} pair rows have no pull: d_w = d_l = 0" if known.any() else "",
        (f"{percent(flat)} of {len(responses)} responses have a gradient of exactly 0") if len(responses) else "",
    ]
    return say(
        "warning" if still > len(norms) / 2 or flat > 0.01 else "note",
        f"Gradients of 0: {'; '.join(filter(None, said))}.",
        "grad_norm = 0; d_w = d_l = 0; ‖g_w‖ = 0 or ‖g_l‖ = 0",
        Number("steps with gradient norm 0", still, "steps"),
        Number("rows with d_w = d_l = 0", idle, "share"),
        Number("responses with gradient norm 0", flat, "share"),
        change=("objective", "data"),
    )
