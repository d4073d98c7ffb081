"""Where the mass went: squeezed onto the argmax token or not, and how often a gate held."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dyn_probe.errors import BadInput
from dyn_probe.mass.squeezing import Squeezing, run_figures
from dyn_probe.report.verdicts.verdict import Level, Number, Verdict, count, percent, say, sig, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

DELTAS = {
    "delta_chosen": "Δ chosen",
    "delta_rejected": "Δ rejected",
    "margin": "margin",
    "delta_others": "Δ others",
    "delta_argmax": "Δ argmax",
}
"""Run-level figure → its name in the sentence."""


def went(trace: Trace) -> list[Verdict]:
    """Where the mass went: to chosen, to everything, or squeezed onto the most probable token."""
    found = figures(trace)
    if found is None:
        return []
    level, meaning, change = judged(found)
    known = {name: value for name in DELTAS if not math.isnan(value := float(getattr(found, name)))}
    moved = ", ".join(f"{DELTAS[name]} {signed(value)}" for name, value in known.items())
    span = f"between steps {found.first_step} and {found.last_step}"
    sentence = (
        f"Where the mass went: {meaning}. {span[0].upper() + span[1:]} the {count(found.prompts, 'probe prompt')} saw "
        f"{moved} (nats/sequence); squeezing index {signed(found.index)} nats/token."
    )
    return say(
        level,
        sentence,
        "Δ = mean of log π(y|x) at the last probe − at the first; argmax: of Σ_t log max_v π_t(v); margin = Δ chosen − "
        "Δ rejected; others: unrelated and shuffled responses; prevented ⇔ Δ chosen > 0; index = Δ argmax − mean of "
        "Δ chosen, Δ rejected, Δ others, each per token",
        *(Number(DELTAS[name], value, "nats/sequence") for name, value in known.items()),
        Number("squeezing index", found.index, "nats/token"),
        Number("n", found.prompts, "prompts"),
        change=change,
    )


def gated(trace: Trace) -> list[Verdict]:
    """How often the gate saw a rejected response that was improbable already."""
    mass = trace.about.mass
    if mass is None or mass.gating_rate is None or mass.mean_gate is None:
        return []
    rate, mean = mass.gating_rate, mass.mean_gate
    return say(
        "note",
        f"Gating rate {percent(rate)}: in that share of the recorded pair rows the rejected response was already below "
        f"the gate's threshold; on average the gate let through {sig(mean)} of the rejected contribution.",
        "share of rows with s < τ, s the rejected token probability the gate reads; mean of g = σ(α(s − τ))",
        Number("gating rate", float(rate), "share"),
        Number("g, mean", float(mean), "1"),
    )


def figures(trace: Trace) -> Squeezing | None:
    """Run-level figures; None where no response was measured at two steps."""
    try:
        found = run_figures(trace.mass)
    except BadInput:
        return None
    return None if math.isnan(found.index) else found


def judged(found: Squeezing) -> tuple[Level, str, tuple[str, ...]]:
    """Level, meaning in words, and the knobs that would change it."""
    fell, rose, top = found.delta_chosen < 0, found.delta_chosen > 0, found.delta_argmax > 0
    if fell and top and found.index > 0:
        words = "squeezed onto the most probable tokens, an early sign of repetition: they gained while chosen lost"
        return "warning", words, ("rejected", "lr", "beta", "sft", "early")
    if fell:
        words = "chosen lost mass" + (", but the most probable tokens did not gain it" if not top else "")
        return "note", words, ("sft", "chosen", "rejected")
    if rose and found.index > 0 and found.delta_others < 0:
        words = "to chosen and to the most probable tokens, away from everything else; squeezing was prevented"
        return "ok", words, ()
    if rose:
        return "ok", "to chosen; squeezing was prevented", ()
    if top and found.index > 0:
        return "note", "the most probable tokens gained on the observed responses", ("rejected", "lr")
    return "ok", "no squeezing", ()
