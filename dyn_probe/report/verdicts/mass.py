"""Where the probability mass went: the early sign of repetition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dyn_probe.report.figures.mass import since_start
from dyn_probe.report.frames import Floats, Mask, finite, numbers
from dyn_probe.report.verdicts.verdict import Level, Number, Verdict, say, signed

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace


def squeezing(trace: Trace) -> list[Verdict]:
    """Whether probability moved to the most probable token while everything observed fell."""
    frame = trace.mass
    steps, kind = numbers(frame, "step"), frame["kind"].to_numpy()
    end = (steps == steps.max(initial=-1)) & (steps > steps.min(initial=0))
    observed = since_start(frame, numbers(frame, "logp_token"))
    argmax = since_start(frame, numbers(frame, "argmax_logp") / numbers(frame, "tokens"))
    if not len(finite(observed[end])) or not len(finite(argmax[end])):
        return []
    groups = {"chosen": end & (kind == "chosen"), "rejected": end & (kind == "rejected")}
    groups["others"] = end & ~groups["chosen"] & ~groups["rejected"]
    moved = {name: _mean(observed, mask) for name, mask in groups.items() if mask.any()}
    top, index = _mean(argmax, end), _mean(argmax, end) - _mean(observed, end)
    level, meaning = _meaning(index, top, moved)
    changes = ", ".join(f"{name} by {signed(value)}" for name, value in moved.items())
    sentence = (
        f"{meaning}: since the first probe the most probable token moved by {signed(top)} nats/token, "
        f"{changes}; "
        f"squeezing index {signed(index)} ({int(end.sum())} probe responses)."
    )
    return say(
        level,
        sentence,
        "mean change per token of Σ_t log max_v π_t(v) − mean change per token of the observed responses",
        Number("squeezing index", index, "nats/token"),
        Number("change of the most probable token", top, "nats/token"),
        *(Number(f"change of {name}", value, "nats/token") for name, value in moved.items()),
        Number("n", int(end.sum()), "responses"),
        change=() if level == "ok" else ("lr", "beta", "sft", "rejected"),
    )


def _mean(values: Floats, mask: Mask) -> float:
    kept = finite(values[mask])
    return float(kept.mean()) if len(kept) else float("nan")


def _meaning(index: float, top: float, moved: dict[str, float]) -> tuple[Level, str]:
    if index > 0 and top > 0 and all(value < 0 for value in moved.values()):
        return "warning", "Probability is squeezed onto the most probable token, an early sign of repetition"
    if index > 0:
        return "note", "The most probable token gained on the observed responses"
    return "ok", "No squeezing"
