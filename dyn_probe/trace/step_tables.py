"""Tables of whole steps: what pushed each log-probability, the Gram of a batch, and the pairs at the end of a run.

Letters as in docs/notation.md: ``P`` is the metric that the optimizer applied, ``Δθ`` its step, ``G`` the gradient that
it saw.
"""

from __future__ import annotations

from dataclasses import replace

from dyn_probe.trace.column_types import INNER, PAIR, RANK, SEQ, STEP, Column, Table, real

GRAMS = Table(
    "grams",
    "one recorded batch of one process: inner products of all its responses' gradients, rows [chosen; rejected]",
    (
        STEP,
        RANK,
        Column("pair_ids", "list<string>", "", "the B pairs of the batch", required=True),
        Column("gram", "list<float64>", INNER, "K = ⟨g_i, g_j⟩, (2B)² numbers, row by row"),
        Column("gram_metric", "list<float64>", "nats", "⟨g_i, ωP g_j⟩ in the metric that the step applied, likewise"),
    ),
)

PRECISION = (
    real(
        "norm_error",
        "1",
        "largest relative error of ‖g_w‖, ‖g_l‖ of one pair of the step, against the same weights in float64; where "
        "gradients are computed in half precision, at the 1st, 2nd, 4th, 8th, … recorded step",
    ),
    real("inner_error", "1", "error of that pair's ⟨g_w, g_l⟩, in parts of ‖g_w‖‖g_l‖"),
    real("cosine_error", "1", "error of its grad_cosine"),
    real("logp_error", SEQ, "larger error of its a and b"),
    real(
        "underflow_share",
        "share",
        "share of the non-zero entries of the loss's gradient by the outputs of its half-precision modules, as float64 "
        "has them, that are below the smallest normal number of the type (loss scale included)",
    ),
    real("overflow_share", "share", "the same above the type's largest number"),
)
"""What half precision does to one pair's numbers."""

SIDE = Column("side", "string", "", "chosen or rejected: the response that was pushed", required=True)

METRIC = "applied: P of this step; previous: P of the step before, in which own parts, past and decay alone are known"

PUSHES = Table(
    "pushes",
    "one response of one pair at one step that was taken apart: what moved its log-probability, to first order",
    (
        STEP,
        PAIR,
        RANK,
        SIDE,
        real("own_chosen", SEQ, "−ωκc_w⟨g_i, P g_w⟩: the pair's own chosen gradient in this step"),
        real("own_rejected", SEQ, "−ωκc_l⟨g_i, P g_l⟩: the pair's own rejected gradient in this step"),
        real("others", SEQ, "−ω⟨g_i, P G⟩ less both own parts: other pairs, and other terms of the loss"),
        real("all_chosen", SEQ, "all chosen gradients, of this step and through the momentum of earlier ones"),
        real("all_rejected", SEQ, "all rejected gradients, of this step and through the momentum of earlier ones"),
        real("past", SEQ, "−⟨g_i, p⟩: what earlier steps left in the momentum"),
        real("decay", SEQ, "−λ_d⟨g_i, θ⟩ − ωγ⟨g_i, Pθ⟩: weight decay"),
        real("rounding", SEQ, "total less all parts: what the weights' type could not hold"),
        real("total", SEQ, "⟨g_i, Δθ⟩ with the weights as they were stored before and after the step"),
        Column("metric", "string", "", METRIC),
    ),
    unique=("step", "rank", "pair_id", "side"),
)

FINAL = Table(
    "final",
    "one pair after the last step",
    (
        replace(PAIR, required=True),
        RANK,
        real("logp_chosen", SEQ, "a = log π(y_w|x), summed over response tokens, after the last step"),
        real("logp_rejected", SEQ, "b = log π(y_l|x), summed over response tokens, after the last step"),
        real("start_logp_chosen", SEQ, "a before the first step; null where a reference was recorded, which is that"),
        real("start_logp_rejected", SEQ, "b before the first step; null where a reference was recorded, which is that"),
        Column("len_chosen", "int32", "tokens", "n_w: response tokens of chosen"),
        Column("len_rejected", "int32", "tokens", "n_l: response tokens of rejected"),
    ),
    unique=("pair_id",),
    latest=True,
)
