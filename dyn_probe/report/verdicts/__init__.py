"""Verdicts: what happened in a run, in sentences with their numbers, formulas and advice. Pure functions of a trace.

A statement is `def name(trace) -> list[Verdict]`: empty where what it needs was not measured or where there
is nothing to say. Its row in VERDICTS gives it a topic and its place in the report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from dyn_probe.report.verdicts import (
    alike,
    cases,
    data_read,
    generalised,
    gradients,
    hidden_similarity,
    mass_went,
    movement,
    prediction,
    realised,
    reference,
    remedies,
    shaped,
    spikes,
    spread,
    stalled,
    status,
    synchrony,
    theorem,
    useless,
    what_moved,
)
from dyn_probe.report.verdicts.advice import IN_USE, KNOBS
from dyn_probe.report.verdicts.verdict import Level, Number, Verdict, percent, sig, signed, written

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

__all__ = [
    "TOPICS",
    "VERDICTS",
    "Level",
    "Number",
    "Verdict",
    "percent",
    "sig",
    "signed",
    "verdicts",
    "written",
]

VERDICTS: dict[str, tuple[Callable[[Trace], list[Verdict]], ...]] = {
    "movement": (
        movement.overall,
        generalised.generalised,
        movement.hidden,
        reference.distance,
        reference.turn,
        synchrony.together,
    ),
    "pushes": (
        what_moved.moved,
        what_moved.outweighed,
        what_moved.between,
        what_moved.untrusted,
        what_moved.unheld,
        what_moved.lacking,
    ),
    "cases": (cases.turning, cases.shares, realised.measured, realised.origin, gradients.alignment, theorem.after),
    "change": (remedies.common_factor, remedies.nll_weight),
    "pairs": (
        spread.concentration,
        spread.length,
        alike.near_duplicates,
        useless.useless,
        hidden_similarity.similarity,
    ),
    "mass": (mass_went.went, mass_went.gated),
    "gradient": (
        stalled.saturated,
        stalled.stuck,
        spikes.spikes,
        spikes.zeros,
        gradients.fading,
        gradients.negative_pulls,
        gradients.clipping,
    ),
    "layers": (spread.layers,),
    "shaping": (shaped.gate, shaped.rho, shaped.balance, shaped.mask),
    "prediction": (prediction.alone, prediction.batch, prediction.update),
    "trust": (
        status.ending,
        status.certificate,
        status.law1,
        status.not_finite,
        status.precision,
        status.fallbacks,
        status.lost_rows,
        data_read.left_out,
        data_read.tokens,
        status.torn,
        status.damaged,
        status.unwritten,
        status.unmeasured,
    ),
}
"""Topic → its statements, in the order of the report."""

TOPICS: dict[str, str] = {
    "movement": "Chosen and rejected",
    "pushes": "What moved them",
    "cases": "Why: the cases",
    "change": "What a different balance would do",
    "pairs": "Which pairs",
    "mass": "Where the probability goes",
    "gradient": "Gradient norm and pulls",
    "layers": "Which layers",
    "shaping": "Gradient shaping",
    "prediction": "Do first-order predictions hold?",
    "trust": "Can the trace be trusted?",
}


def verdicts(trace: Trace) -> list[Verdict]:
    """Everything that can be said about the run, topic by topic; advice that it follows already is left out."""
    useless = followed(trace)
    return [
        replace(verdict, topic=topic, knobs=tuple(knob for knob in verdict.knobs if knob not in useless))
        for topic, statements in VERDICTS.items()
        for statement in statements
        for verdict in statement(trace)
    ]


def followed(trace: Trace) -> set[str]:
    """The advice that the run's own objective and shapings follow already."""
    return {KNOBS[key] for key, follows in IN_USE.items() if follows(trace.about)}
