"""Every column of every table: name, type, unit, meaning. The single source for writer, reader and docs.

Letters as in docs/notation.md: ``a``, ``b`` are the chosen and rejected log-probability, ``g_w``, ``g_l``
their gradients over all trained parameters, ``d_w``, ``d_l`` the pulls, ``K`` the Gram of the batch.

``python -m dyn_probe.trace.schema`` prints all of it as Markdown.
"""

from __future__ import annotations

from dataclasses import replace

from dyn_probe.trace.column_types import GRAD, INNER, PAIR, RANK, SEQ, STEP, Column, Table, real
from dyn_probe.trace.response_tables import DISTRIBUTIONS, MASS, TOKENS
from dyn_probe.trace.step_tables import FINAL, GRAMS, PRECISION, PUSHES

__all__ = ["CASES", "RANK", "SCHEMA_VERSION", "TABLES", "UNDEFINED", "Column", "Table"]

UNDEFINED = ("grad_cosine", "band_slack", "band_slack_metric")
"""Columns that are NaN where they have no meaning, as a cosine with a gradient that is 0."""
SCHEMA_VERSION = 2

_PAIR_TEXTS = (
    *(
        real(
            f"logp_{side}_{part}",
            SEQ,
            f"the part of logp_{side} {where} the first token in which the two responses differ",
        )
        for side in ("chosen", "rejected")
        for part, where in (("before", "from tokens before"), ("at", "from"), ("after", "from tokens after"))
    ),
    real("edit_distance", "share", "Levenshtein distance of the two responses' tokens, divided by the longer length"),
    Column("shared_prefix", "int32", "tokens", "response tokens before the first in which the two responses differ"),
)
"""Where two responses differ, and what that part of them is worth."""

_PAIR_CONDITIONS = (
    real(
        "band_slack",
        "nats",
        "how far log(d_w/d_l) lies inside the band log(‖g_l‖/‖g_w‖) ± |log cos| of case 1 (negative: outside); null "
        "where cos ≤ 0, where every positive ratio is inside, or a pull is ≤ 0",
    ),
    real("band_slack_metric", "nats", "the same with the inner products ⟨g_i, P g_j⟩ in the optimizer's metric P"),
    real("ches", "1", "⟨Σ_t h_w^t, Σ_t h_l^t⟩ − ‖Σ_t h_w^t‖², h the last hidden states that predict response tokens"),
    real("ches_normalised", "1", "the same with means over the response tokens for sums"),
)
"""Conditions of a pair beside its case."""

PAIRS = Table(
    "pairs",
    "one pair at one recorded step",
    (
        STEP,
        PAIR,
        RANK,
        real("logp_chosen", SEQ, "a = log π(y_w|x), summed over response tokens, before the update"),
        real("logp_rejected", SEQ, "b = log π(y_l|x), summed over response tokens, before the update"),
        real("ref_logp_chosen", SEQ, "r_w: the same under the reference policy"),
        real("ref_logp_rejected", SEQ, "r_l: the same under the reference policy"),
        Column("len_chosen", "int32", "tokens", "n_w: response tokens of chosen"),
        Column("len_rejected", "int32", "tokens", "n_l: response tokens of rejected"),
        real("loss", "nats", "ℓ of this pair"),
        real(
            "score_chosen",
            "nats",
            "what the objective compares of chosen, before the update; objective.score in run.json says what it is",
        ),
        real("score_rejected", "nats", "the same of rejected; the pair is ordered right where chosen has more"),
        real("pull_chosen", "1", "d_w = −∂ℓ/∂a"),
        real("pull_rejected", "1", "d_l = ∂ℓ/∂b"),
        real(
            "grad_norm_chosen",
            GRAD,
            "‖g_w‖, g_w = ∇a over all trained parameters; null, as all that follows from it, where the pull vanished "
            "in a loss declared to have no such pulls (lost_rows in the table steps)",
        ),
        real("grad_norm_rejected", GRAD, "‖g_l‖, g_l = ∇b over all trained parameters"),
        real("grad_inner", INNER, "⟨g_w, g_l⟩"),
        real("grad_cosine", "1", "⟨g_w, g_l⟩ / (‖g_w‖‖g_l‖)"),
        Column(
            "case_plain",
            "int32",
            "",
            "1 chosen up and rejected down, 2 both down, 3 both up, 4 chosen down and rejected up: by the signs of "
            "predicted_delta_*, a plain gradient step on this pair alone",
            aliases=("case",),
        ),
        Column(
            "case_update",
            "int32",
            "",
            "the same by the signs of update_delta_*: the optimizer's own step, to first order",
        ),
        Column(
            "case_realised",
            "int32",
            "",
            "the same by the signs of realised_delta_*: what happened; null where either is within noise_floor",
        ),
        real(
            "predicted_delta_chosen",
            SEQ,
            "Δa = η(d_w‖g_w‖² − d_l⟨g_w,g_l⟩): a plain gradient step on this pair alone",
        ),
        real(
            "predicted_delta_rejected",
            SEQ,
            "Δb = η(d_w⟨g_w,g_l⟩ − d_l‖g_l‖²): a plain gradient step on this pair alone",
        ),
        real(
            "batch_delta_chosen",
            SEQ,
            "Δa from one plain gradient step on the mean loss of the whole batch (all processes and micro-batches)",
        ),
        real(
            "batch_delta_rejected",
            SEQ,
            "Δb from one plain gradient step on the mean loss of the whole batch (all processes and micro-batches)",
        ),
        real("realised_delta_chosen", SEQ, "a after the optimizer's update minus a before it, without dropout"),
        real("realised_delta_rejected", SEQ, "b after the optimizer's update minus b before it, without dropout"),
        real("update_delta_chosen", SEQ, "Δa = ⟨g_w, Δθ⟩ with the optimizer's own update Δθ: first order, real step"),
        real("update_delta_rejected", SEQ, "Δb = ⟨g_l, Δθ⟩ with the optimizer's own update Δθ: first order, real step"),
        *_PAIR_TEXTS,
        *_PAIR_CONDITIONS,
        real("gate", "1", "g of Gate-DPO: factor on the rejected contribution"),
        real("gate_statistic", "probability", "s of Gate-DPO: the rejected token probability the gate reads"),
        real("rho", "1", "ρ of AdaDPO: factor on the chosen contribution"),
        real("normaliser_chosen", "1", "factor on d_w by a shaping, once gradient norms were known"),
        real("normaliser_rejected", "1", "factor on d_l by a shaping, once gradient norms were known"),
        real("mask_chosen", "1", "mean token mask m_w of the chosen response"),
        real("mask_rejected", "1", "mean token mask m_l of the rejected response"),
        real("mask_spread", "1", "standard deviation of the masks over the tokens of both responses"),
        real(
            "mask_signal",
            "nats/token",
            "s: mean margin per token of the batch, in which the masks' penalty is measured",
        ),
        real(
            "kl", "nats", "KTO's KL estimate from mismatched responses of the batch (its reference point is β times it)"
        ),
        real("shift", "1", "λ of DPO-Shift at this step: factor on the rejected log-ratio"),
        Column(
            "separate_backward",
            "bool",
            "",
            "true where the gradients were computed in a separate backward pass: the pull was 0 or too small, or "
            "differed between the tokens of a response",
        ),
    ),
)

SCORED = {"loss", *(f"{name}_{side}" for name in ("logp", "ref_logp", "score") for side in ("chosen", "rejected"))}
"""What the loop says of every pair, recorded or not."""

SCORES = Table(
    "scores",
    "one pair at one step that was not recorded, where records are thinned by a budget: what the loop said of it",
    (STEP, PAIR, RANK, *(column for column in PAIRS.columns if column.name in SCORED)),
)

STEPS = Table(
    "steps",
    "one optimizer step of one process",
    (
        STEP,
        RANK,
        Column("pairs", "int32", "pairs", "pairs this process trained on in the step"),
        real("loss", "nats", "mean loss over these pairs"),
        real("learning_rate", "1", "η of the step"),
        real("grad_norm", GRAD, "norm of the accumulated gradient before clipping"),
        real("grad_norm_clipped", GRAD, "the same after clipping, as the optimizer sees it"),
        real("logp_chosen", SEQ, "mean a"),
        real("logp_rejected", SEQ, "mean b"),
        real(
            "margin",
            "nats",
            "mean of score_chosen − score_rejected; where no score was recorded, of (a − r_w) − (b − r_l), or of a − b "
            "without a reference",
        ),
        real("accuracy", "share", "share of pairs whose margin is above 0"),
        real("eval_logp_chosen", SEQ, "mean a of the held-out pairs, before the step"),
        real("eval_logp_rejected", SEQ, "mean b of the held-out pairs, before the step"),
        real("eval_margin", "nats", "mean of score_chosen − score_rejected of the held-out pairs, before the step"),
        real("eval_accuracy", "share", "share of held-out pairs whose margin is above 0, before the step"),
        real(
            "eval_log_ratio_margin",
            SEQ,
            "mean log-ratio of chosen minus that of rejected over the held-out pairs, before the step, whatever the "
            "objective compares: against the reference; without one, against the start of training",
        ),
        real("eval_log_ratio_accuracy", "share", "share of held-out pairs whose log-ratio margin is above 0"),
        real(
            "eval_kl_ref",
            "nats/token",
            "exact KL(π‖π_ref) of the next token, mean over the response positions of each held-out pair and over "
            "pairs, before the step; π_ref is the policy at the start, where a copy of it or of its logits is at hand",
        ),
        real(
            "eval_kl_ref_sampled",
            "nats/token",
            "where it is not: estimate of the same, mean of r log r − (r − 1) with r = π/π_ref of tokens that π_ref "
            "drew at these positions at the start",
        ),
        real(
            "step_seconds",
            "s",
            "wall time of the step on the host, recorder included; a GPU may still be at work if nothing is recorded",
        ),
        real("pushes_seconds", "s", "what of it went into taking the optimizer's step apart"),
        real("pushes_mib", "MiB", "held for that until the step was made: a copy of the weights, factored gradients"),
        real("law1_error", "1", "relative error of cᵀKc = ‖∇loss‖² where the full Gram was recorded"),
        real("law7_error", "1", "largest |rounding| / Σ|parts| of the step's pushes: parts against stored weights"),
        real("lost_share", "share", "largest part of a float32 parameter's step lost by storing, if law7_error > 1e-4"),
        real("law7_share", "share", "share of the trained weights that this was checked on"),
        *PRECISION,
        real("kappa_error", "1", "relative error of ‖G‖² = κ²cᵀKc, G the gradient that the optimizer saw"),
        Column(
            "not_finite",
            "int32",
            "numbers",
            "numbers of the step and of its pairs that came out as NaN or infinite; null stands where NaN came",
        ),
        Column("separate_rows", "int32", "rows", "rows whose gradients needed a separate backward pass"),
        Column(
            "lost_rows",
            "int32",
            "rows",
            "rows that would have needed one and have no gradients: the pull was 0, too small, not finite or differed "
            "between a response's tokens, in a loss that was said to have no such pulls (vanishing=False)",
        ),
        real("unmoved_share", "share", "share of the trained weights that the step left as they were"),
        real(
            "noise_floor",
            SEQ,
            "largest difference of a log-probability that is computed twice from the same weights, in the batch and "
            "with its pair alone, at the first step: a smaller change is numerics",
        ),
        real(
            "other_terms",
            "share",
            "share of the squared gradient that is no multiple of the recorded rows' sum S, 1 − ⟨G,S⟩²/(‖G‖²‖S‖²): "
            "other terms of the loss, pairs of other processes",
        ),
    ),
)

LAYERS = Table(
    "layers",
    "one layer of one pair at one recorded step; squared norms and inner products add up to the pair's; no rows of a "
    "pair without gradients (lost_rows in the table steps)",
    (
        STEP,
        PAIR,
        Column(
            "layer",
            "string",
            "",
            "embedding, block number, final_norm or head; a tied head counts as embedding",
        ),
        Column("depth", "int32", "", "position of the layer from input to output, from 0"),
        real("grad_norm_chosen", GRAD, "‖g_w‖ over the layer's parameters"),
        real("grad_norm_rejected", GRAD, "‖g_l‖ over the layer's parameters"),
        real("grad_inner", INNER, "⟨g_w, g_l⟩ over the layer's parameters"),
    ),
)

EXAMPLES = Table(
    "examples",
    "one pair of the data, as text",
    (
        replace(PAIR, required=True),
        Column("prompt", "string", "", "prompt text, decoded from the measured tokens; cuts are marked"),
        Column("chosen", "string", "", "chosen response text, likewise"),
        Column("rejected", "string", "", "rejected response text, likewise"),
        Column("source", "string", "", "file and line, or generator and number"),
    ),
    unique=("pair_id",),
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (PAIRS, PUSHES, SCORES, GRAMS, FINAL, STEPS, LAYERS, TOKENS, MASS, DISTRIBUTIONS, EXAMPLES)
}

CASES: dict[int, str] = {
    1: "chosen up, rejected down",
    2: "both down",
    3: "both up",
    4: "chosen down, rejected up",
}


if __name__ == "__main__":
    from dyn_probe.trace.docs import schema_markdown

    print(schema_markdown())
