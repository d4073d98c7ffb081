"""Tables of whole steps: what pushed each log-probability, the Gram of a batch, and the pairs at the end of a run.

Letters as in docs/notation.md; ``P`` is the metric that the optimizer applied, ``Δθ`` its step.
"""

from __future__ import annotations

from dataclasses import replace

from dyn_probe.trace.columns import PAIR, RANK, SEQ, STEP, Column, Table, real

SIDE = Column("side", "string", "", "chosen or rejected: whose log-probability was pushed")

PUSHES = Table(
    "pushes",
    "one response of a pair at one step whose update was taken apart: shares of ⟨g_i, Δθ⟩, g_i the response's gradient",
    (
        STEP,
        PAIR,
        RANK,
        SIDE,
        real("own_chosen", "nats", "by this step's gradient of the pair's own chosen response"),
        real("own_rejected", "nats", "by this step's gradient of the pair's own rejected response"),
        real("others", "nats", "by all else in this step's gradient: other pairs, and other terms of the loss"),
        real(
            "all_chosen", "nats", "by all chosen responses, those of earlier steps included; needs the split momentum"
        ),
        real("all_rejected", "nats", "by all rejected responses, those of earlier steps included; likewise"),
        real("past", "nats", "by the gradients of earlier steps, through the optimizer's momentum"),
        real("decay", "nats", "by weight decay"),
        real(
            "rounding",
            "nats",
            "total less own_chosen, own_rejected, others, past and decay: what the weights' type lost",
        ),
        real("total", "nats", "⟨g_i, Δθ⟩ with Δθ as the weights were stored before and after"),
        Column(
            "metric", "string", "", "whose metric and momentum: applied (this step's) or previous (the step's before)"
        ),
    ),
)

GRAMS = Table(
    "grams",
    "the full Gram of one batch at one step; its 2B rows are the B chosen responses, then the B rejected ones",
    (
        STEP,
        RANK,
        Column("pair_ids", "list<string>", "", "the batch's B pairs, in the order of the rows"),
        Column("gram", "list<float64>", "(nats/parameter unit)²", "K[i,j] = ⟨g_i, g_j⟩: (2B)² entries, row by row"),
        Column(
            "gram_metric",
            "list<float64>",
            "(nats/parameter unit)² · P",
            "K_P[i,j] = ⟨g_i, P g_j⟩ in the metric that the optimizer applied: (2B)² entries, row by row",
        ),
    ),
)

FINAL = Table(
    "final",
    "one pair after the last step",
    (
        replace(PAIR, required=True),
        RANK,
        real("logp_chosen", SEQ, "a = log π(y_w|x), summed over response tokens, after the last step"),
        real("logp_rejected", SEQ, "b = log π(y_l|x), summed over response tokens, after the last step"),
        Column("len_chosen", "int32", "tokens", "n_w: response tokens of chosen"),
        Column("len_rejected", "int32", "tokens", "n_l: response tokens of rejected"),
    ),
    unique=("pair_id",),
    latest=True,
)
