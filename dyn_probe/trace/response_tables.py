"""Tables of responses: token by token for followed pairs, and the probe responses.

Letters as in docs/notation.md; ``s_w``, ``s_l`` are the next-token distributions after the chosen and the rejected
beginning.
"""

from __future__ import annotations

from dyn_probe.trace.column_types import INNER, PAIR, SEQ, STEP, Column, Table, real

_TOKEN_THEORY = (
    Column(
        "theorem_3_holds",
        "list<float64>",
        "",
        "for each position after the first difference at which both responses have the same token i: 1 where the "
        "assumption of Yuan et al.'s Theorem 3 holds, s_w[i] ≥ s_l[i] and s_w[j] ≤ s_l[j] for all others, else 0",
    ),
    Column(
        "theorem_3_change",
        "list<float64>",
        "1",
        "at these positions (1−s_w[i])(s_l[i]−s_w[i]) − Σ_{j≠i} s_w[j]·(s_l[j]−s_w[j]): the change of the chosen token "
        "if only the logits are trained; the assumption makes it ≤ 0",
    ),
)
"""Theorem 3 at the positions of a followed pair, in the rows of side chosen_rejected."""

_TOKEN_MASKS = tuple(
    Column(f"mask_tokens_{side}", "list<float64>", "1", f"token masks m of the {side} response (token-mask), in order")
    for side in ("chosen", "rejected")
)
"""Learned masks of a followed pair, likewise."""

TOKENS = Table(
    "tokens",
    "one followed pair at one recorded step",
    (
        STEP,
        PAIR,
        Column("side", "string", "", "chosen_rejected, chosen or rejected: whose tokens the rows and columns are"),
        Column("tokens_rows", "list<string>", "", "token strings of the rows"),
        Column("tokens_columns", "list<string>", "", "token strings of the columns"),
        Column("inner", "list<float64>", INNER, "token Gram, row by row"),
        Column("cosine", "list<float64>", "1", "its cosines, row by row"),
        *_TOKEN_THEORY,
        *_TOKEN_MASKS,
    ),
)

MASS = Table(
    "mass",
    "one probe response at one recorded step, teacher-forced",
    (
        STEP,
        Column("prompt_id", "string", "", "hash of the prompt's text"),
        Column("kind", "string", "", "response kind (chosen, rejected, random_permute, …)"),
        Column("tokens", "int32", "tokens", "response tokens"),
        real("logp", SEQ, "log π(y|x), summed over response tokens"),
        real("logp_token", "nats/token", "log π(y|x) divided by the number of tokens"),
        real("argmax_logp", SEQ, "Σ_t log max_v π_t(v)"),
        real("not_argmax_logp", SEQ, "Σ_t log(1 − max_v π_t(v))"),
        real("entropy", "nats/token", "mean entropy of π_t"),
        real("rank", "1", "mean number of tokens more probable than the target; an equally probable one counts ½"),
        real("top1", "share", "share of positions whose most probable token is the target; a tie is split"),
        real("residual", "1", "mean ‖π_t − e_y‖₂"),
        real("missing_mass", "1", "mean 1 − π_t(y)"),
        real("rival_mass", "1", "mean probability of the most probable token other than the target"),
        real("prob_norm", "1", "mean ‖π_t‖₂"),
        real("a_norm", "1", "‖A‖_F = sqrt(V·mean‖π_t‖² + V − 2)"),
        real(
            "kl_ref",
            "nats/token",
            "exact KL(π_t‖π_ref,t) of the next token, mean over the response's positions; π_ref is the policy at the "
            "start of training, where a copy of it or of its logits is at hand",
        ),
        real(
            "kl_ref_sampled",
            "nats/token",
            "where it is not: estimate of the same, mean over the positions of r log r − (r − 1) with r = π/π_ref of "
            "tokens that π_ref drew there at the start",
        ),
    ),
)

DISTRIBUTIONS = Table(
    "distributions",
    "one position of a probe response at the first or the last measurement: what the model would say next",
    (
        STEP,
        Column("first_step", "int32", "step", "step of the first measurement, to which the columns first_… belong"),
        Column("prompt_id", "string", "", "hash of the prompt's text"),
        Column("kind", "string", "", "response kind (chosen, rejected)"),
        Column("position", "int32", "tokens", "which token of the response is next, counted from 0"),
        Column("tokens", "list<string>", "", "the target and the ten most probable tokens of either measurement"),
        Column("target", "int32", "", "place of the target, the response's own token, in tokens (from 0)"),
        Column("probabilities", "list<float64>", "probability", "π_t of these tokens"),
        Column("first_probabilities", "list<float64>", "probability", "the same at the first measurement"),
        real("rest", "probability", "1 − their sum: probability of all other tokens"),
        real("first_rest", "probability", "the same at the first measurement"),
    ),
)
