"""Where the probability mass went: to chosen, rejected, others or the argmax token, or spread over all; and how often
the gate was closed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from dyn_probe.errors import BadInput
from dyn_probe.mass.squeezing import Squeezing, run_figures
from dyn_probe.report.frames import numbers
from dyn_probe.report.verdicts.shaped import gate_constants
from dyn_probe.report.verdicts.verdict import Level, Number, Verdict, count, percent, say, sig, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

FLAT = 0.05
"""Rise of the entropy, in nats/token, from which on the model is said to have flattened."""
DELTAS = {
    "delta_chosen": "Δ chosen",
    "delta_rejected": "Δ rejected",
    "margin": "margin",
    "delta_others": "Δ others",
    "delta_argmax": "Δ argmax",
}
"""Run-level figure → its name in the sentence."""


def went(trace: Trace) -> list[Verdict]:
    """Where the probability mass went: to chosen, rejected, others, the most probable tokens, or spread over all."""
    found = figures(trace)
    if found is None:
        return []
    entropy = entropies(trace)
    level, meaning, change = judged(found, entropy)
    known = {name: value for name in DELTAS if not math.isnan(value := float(getattr(found, name)))}
    moved = ", ".join(f"{DELTAS[name]} {signed(value)}" for name, value in known.items())
    sentence = (
        f"{meaning}. Over {count(found.prompts, 'probe prompt')}, from step {found.first_step} to {found.last_step}: "
        f"{moved} (nats/sequence); {_index(found)}."
    )
    return say(
        level,
        sentence,
        "Δ = mean of log π(y|x) at the last probe − at the first; argmax: of Σ_t log max_v π_t(v); margin = Δ chosen − "
        "Δ rejected; others: unrelated and shuffled responses; prevented ⇔ Δ chosen > 0; index = Δ argmax − mean of "
        "Δ chosen, Δ rejected, Δ others, each per token",
        *(Number(name, DELTAS[name], value, "nats/sequence") for name, value in known.items()),
        Number("squeezing_index", "squeezing index", found.index, "nats/token"),
        *(
            Number(f"entropy_{when}", f"entropy, {when} probe", value, "nats/token")
            for when, value in zip(("first", "last"), entropy, strict=True)
            if not math.isnan(value)
        ),
        Number("n", "n", found.prompts, "prompts"),
        change=change,
    )


def gated(trace: Trace) -> list[Verdict]:
    """How often the rejected response was already below the gate's threshold."""
    mass = trace.about.mass
    if mass is None or mass.gating_rate is None or mass.mean_gate is None:
        return []
    rate, mean = mass.gating_rate, mass.mean_gate
    return say(
        "note",
        f"Gating rate {percent(rate)}: in that share of the recorded pair rows the rejected response was already below "
        f"the gate's threshold{gate_constants(trace, 'tau')}; on average the gate passed {percent(mean)} of the "
        "rejected contribution.",
        "share of rows with s < τ, s the rejected token probability that the gate reads; mean of g = σ(α(s − τ))",
        Number("gating_rate", "gating rate", float(rate), "share"),
        Number("mean_gate", "g, mean", float(mean), "1"),
    )


def figures(trace: Trace) -> Squeezing | None:
    """Run-level figures; None where no response was measured at two steps."""
    try:
        found = run_figures(trace.mass)
    except BadInput:
        return None
    return None if math.isnan(found.index) else found


def entropies(trace: Trace) -> tuple[float, float]:
    """Mean entropy of the next-token distributions at the first and at the last probe, over the responses that were
    measured at both; nats/token, NaN where it was not measured."""
    steps = numbers(trace.mass, "step")
    ends = [
        trace.mass[steps == step].drop_duplicates(["prompt_id", "kind"]).set_index(["prompt_id", "kind"])["entropy"]
        for step in (steps.min(), steps.max())
    ]
    both = pd.concat([pd.to_numeric(end) for end in ends], axis=1, join="inner").dropna()
    return (float(both.iloc[:, 0].mean()), float(both.iloc[:, 1].mean())) if len(both) else (math.nan, math.nan)


def _index(found: Squeezing) -> str:
    """The squeezing index in words: it is called one only where the most probable tokens gained."""
    if found.index > 0 and found.delta_argmax <= 0:
        return f"no squeezing: the most probable tokens lost {sig(found.index)} nats/token less than the responses"
    return f"squeezing index {signed(found.index)} nats/token"


def destination(found: Squeezing, entropy: tuple[float, float]) -> str:
    """Where the mass went that chosen lost and the most probable tokens did not gain."""
    first, last = entropy
    if found.delta_rejected > 0:
        return "it went to rejected"
    if found.delta_others > 0:
        return "it went to other responses"
    if last - first > FLAT:
        return f"the model flattened: entropy {sig(first, 2)} → {sig(last, 2)} nats/token"
    return "it went to responses that were not measured"


def judged(found: Squeezing, entropy: tuple[float, float]) -> tuple[Level, str, tuple[str, ...]]:
    """Level, meaning in words, and the advice."""
    fell, rose, top = found.delta_chosen < 0, found.delta_chosen > 0, found.delta_argmax > 0
    if fell and top and found.index > 0:
        words = (
            "Probability mass was squeezed onto the most probable tokens, which gained while chosen lost: an early "
            "sign of repetition"
        )
        return "warning", words, ("normalise", "chosen", "rejected", "sft", "lr", "early")
    if fell:
        words = "Chosen lost probability mass"
        if not top:
            words += f", but the most probable tokens did not gain it; {destination(found, entropy)}"
        return "note", words, ("normalise", "chosen", "rejected", "sft")
    if rose and top and found.index > 0 and found.delta_others < 0:
        words = (
            "Probability mass went to chosen and to the most probable tokens, away from everything else; squeezing was "
            "prevented"
        )
        return "ok", words, ()
    if rose:
        return "ok", "Probability mass went to chosen; squeezing was prevented", ()
    if top and found.index > 0:
        return "note", "The most probable tokens gained at the expense of the probe responses", ("rejected", "lr")
    return "ok", "No squeezing was observed", ()
