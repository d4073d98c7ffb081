"""Every column of every table: name, type, unit, meaning. The single source for writer, reader and docs.

Letters as in docs/notation.md: ``a``, ``b`` are the chosen and rejected log-probability, ``g_w``, ``g_l``
their gradients over all trained parameters, ``d_w``, ``d_l`` the pulls, ``K`` the Gram of the batch.

``python -m dyn_probe.trace.schema`` prints all of it as Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Column:
    """One column: Arrow type by name, unit, and what it means (with its formula).

    A value that was not measured is null; a ``required`` column has a value in every row.
    """

    name: str
    type: str
    unit: str
    meaning: str
    required: bool = False
    formerly: str = ""
    """The column's name in older traces."""


@dataclass(frozen=True)
class Table:
    """One table: what a row is, its columns in order, and the columns of which no value comes twice."""

    name: str
    row: str
    columns: tuple[Column, ...]
    unique: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


_SEQ = "nats/sequence"
_GRAD = "nats/parameter unit"
_INNER = "(nats/parameter unit)²"


def _real(name: str, unit: str, meaning: str) -> Column:
    return Column(name, "float64", unit, meaning)


_STEP = Column("step", "int64", "step", "optimizer step, counted from 0", required=True)
_PAIR = Column("pair_id", "string", "", "hash of the pair's prompt and response token ids")
RANK = Column("rank", "int32", "", "process that recorded the row", required=True)

PAIRS = Table(
    "pairs",
    "one pair at one recorded step",
    (
        _STEP,
        _PAIR,
        RANK,
        _real("logp_chosen", _SEQ, "a = log π(y_w|x), summed over response tokens, before the update"),
        _real("logp_rejected", _SEQ, "b = log π(y_l|x), summed over response tokens, before the update"),
        _real("ref_logp_chosen", _SEQ, "r_w: the same under the reference policy"),
        _real("ref_logp_rejected", _SEQ, "r_l: the same under the reference policy"),
        Column("len_chosen", "int32", "tokens", "n_w: response tokens of chosen"),
        Column("len_rejected", "int32", "tokens", "n_l: response tokens of rejected"),
        _real("loss", "nats", "ℓ of this pair"),
        _real(
            "score_chosen",
            "nats",
            "what the objective compares of chosen, before the update; objective.score in run.json says what it is",
        ),
        _real("score_rejected", "nats", "the same of rejected; the pair is ordered right where chosen has more"),
        _real("pull_chosen", "1", "d_w = −∂ℓ/∂a"),
        _real("pull_rejected", "1", "d_l = ∂ℓ/∂b"),
        _real("grad_norm_chosen", _GRAD, "‖g_w‖, g_w = ∇a over all trained parameters"),
        _real("grad_norm_rejected", _GRAD, "‖g_l‖, g_l = ∇b over all trained parameters"),
        _real("grad_inner", _INNER, "⟨g_w, g_l⟩"),
        _real("grad_cosine", "1", "⟨g_w, g_l⟩ / (‖g_w‖‖g_l‖)"),
        Column(
            "case_plain",
            "int32",
            "",
            "case of predicted_delta_*: 1 chosen up and rejected down, 2 both down, 3 both up, 4 chosen down and "
            "rejected up",
            formerly="case",
        ),
        Column("case_update", "int32", "", "case of update_delta_*"),
        Column(
            "case_realised",
            "int32",
            "",
            "case of realised_delta_*; null where either change is within noise_floor",
        ),
        _real(
            "predicted_delta_chosen",
            _SEQ,
            "Δa = η(d_w‖g_w‖² − d_l⟨g_w,g_l⟩): a plain gradient step on this pair alone",
        ),
        _real(
            "predicted_delta_rejected",
            _SEQ,
            "Δb = η(d_w⟨g_w,g_l⟩ − d_l‖g_l‖²): a plain gradient step on this pair alone",
        ),
        _real(
            "batch_delta_chosen",
            _SEQ,
            "Δa from one plain gradient step on the mean loss of the whole batch (all processes and micro-batches)",
        ),
        _real(
            "batch_delta_rejected",
            _SEQ,
            "Δb from one plain gradient step on the mean loss of the whole batch (all processes and micro-batches)",
        ),
        _real("realised_delta_chosen", _SEQ, "a after the optimizer's update minus a before it, without dropout"),
        _real("realised_delta_rejected", _SEQ, "b after the optimizer's update minus b before it, without dropout"),
        _real("update_delta_chosen", _SEQ, "Δa = ⟨g_w, Δθ⟩ with the optimizer's own update Δθ: first order, real step"),
        _real(
            "update_delta_rejected", _SEQ, "Δb = ⟨g_l, Δθ⟩ with the optimizer's own update Δθ: first order, real step"
        ),
        _real(
            "band_slack",
            "nats",
            "distance of log(d_w/d_l) from the nearer edge of the band in which a plain step raises chosen and lowers "
            "rejected; negative: outside; null where every ratio of two pulls > 0 is inside",
        ),
        _real("band_slack_metric", "nats", "the same with gradients compared in the metric ωP that the step applied"),
        _real("gate", "1", "g of Gate-DPO: factor on the rejected contribution"),
        _real("gate_statistic", "probability", "s of Gate-DPO: the rejected token probability the gate reads"),
        _real("rho", "1", "ρ of AdaDPO: factor on the chosen contribution"),
        _real("normaliser_chosen", "1", "factor on d_w once gradient norms were known (pairwise-normalised, rc)"),
        _real("normaliser_rejected", "1", "factor on d_l once gradient norms were known (pairwise-normalised, rc)"),
        _real("mask_chosen", "1", "mean token mask m_w of the chosen response"),
        _real("mask_rejected", "1", "mean token mask m_l of the rejected response"),
        _real(
            "kl", "nats", "KTO's KL estimate from mismatched responses of the batch (its reference point is β times it)"
        ),
        _real("shift", "1", "λ of DPO-Shift at this step: factor on the rejected log-ratio"),
        Column(
            "separate_backward",
            "bool",
            "",
            "true where the gradients were computed in a separate backward pass, because the pull was 0 or too small",
        ),
    ),
)

STEPS = Table(
    "steps",
    "one optimizer step of one process",
    (
        _STEP,
        RANK,
        Column("pairs", "int32", "pairs", "pairs this process trained on in the step"),
        _real("loss", "nats", "mean loss over these pairs"),
        _real("learning_rate", "1", "η of the step"),
        _real("grad_norm", _GRAD, "norm of the accumulated gradient before clipping"),
        _real("grad_norm_clipped", _GRAD, "the same after clipping, as the optimizer sees it"),
        _real("logp_chosen", _SEQ, "mean a"),
        _real("logp_rejected", _SEQ, "mean b"),
        _real(
            "margin",
            "nats",
            "mean of score_chosen − score_rejected; where no score was recorded, of (a − r_w) − (b − r_l), or of a − b "
            "without a reference",
        ),
        _real("accuracy", "share", "share of pairs whose margin is above 0"),
        _real("eval_logp_chosen", _SEQ, "mean a of the held-out pairs, before the step"),
        _real("eval_logp_rejected", _SEQ, "mean b of the held-out pairs, before the step"),
        _real("eval_margin", "nats", "mean of score_chosen − score_rejected of the held-out pairs, before the step"),
        _real("eval_accuracy", "share", "share of held-out pairs whose margin is above 0, before the step"),
        _real(
            "eval_log_ratio_margin",
            _SEQ,
            "mean log-ratio of chosen minus that of rejected over the held-out pairs, before the step, whatever the "
            "objective compares: against the reference; without one, against the start of training",
        ),
        _real("eval_log_ratio_accuracy", "share", "share of held-out pairs whose log-ratio margin is above 0"),
        _real("step_seconds", "s", "wall time of the whole step, recorder included"),
        _real("law1_error", "1", "relative error of cᵀKc = ‖∇loss‖² where the full Gram was recorded"),
        _real("law7_error", "1", "largest |rounding| / Σ|parts| of the step's pushes: parts against stored weights"),
        _real("law7_share", "share", "share of the trained weights that this was checked on"),
        _real("kappa_error", "1", "relative error of ‖G‖² = κ²cᵀKc, G the gradient that the optimizer saw"),
        _real(
            "other_terms",
            "share",
            "share of the squared gradient that is no multiple of the recorded rows' sum: other terms of the loss, "
            "pairs of other processes",
        ),
        _real(
            "noise_floor",
            _SEQ,
            "largest difference of a log-probability that is computed twice from the same weights: in the step's batch "
            "and with its pair alone",
        ),
        _real("unmoved_share", "share", "share of the trained weights that the step left as they were"),
        Column("separate_rows", "int32", "rows", "rows whose gradients needed a separate backward pass"),
    ),
)

GRAMS = Table(
    "grams",
    "one recorded batch of one process: inner products of all its responses' gradients, rows [chosen; rejected]",
    (
        _STEP,
        RANK,
        Column("pair_ids", "list<string>", "", "the B pairs of the batch", required=True),
        Column("gram", "list<float64>", _INNER, "K = ⟨g_i, g_j⟩, (2B)² numbers, row by row"),
        Column("gram_metric", "list<float64>", "nats", "⟨g_i, ωP g_j⟩ in the metric that the step applied, likewise"),
    ),
)

FINAL = Table(
    "final",
    "one pair that was trained on, evaluated once more with the weights at the end of the run",
    (
        _PAIR,
        _real("logp_chosen", _SEQ, "a = log π(y_w|x) at the end, in eval mode"),
        _real("logp_rejected", _SEQ, "b = log π(y_l|x) at the end, in eval mode"),
        Column("len_chosen", "int32", "tokens", "n_w: response tokens of chosen"),
        Column("len_rejected", "int32", "tokens", "n_l: response tokens of rejected"),
    ),
    unique=("pair_id",),
)

_SIDE = Column("side", "string", "", "chosen or rejected: the response that was pushed", required=True)

PUSHES = Table(
    "pushes",
    "one response of one pair at one step that was taken apart: what moved its log-probability, to first order",
    (
        _STEP,
        _PAIR,
        RANK,
        _SIDE,
        _real("own_chosen", _SEQ, "−ωκc_w⟨g_i, P g_w⟩: the pair's own chosen gradient in this step"),
        _real("own_rejected", _SEQ, "−ωκc_l⟨g_i, P g_l⟩: the pair's own rejected gradient in this step"),
        _real("others", _SEQ, "−ω⟨g_i, P G⟩ less both own parts: other pairs, and other terms of the loss"),
        _real("all_chosen", _SEQ, "all chosen gradients, of this step and through the momentum of earlier ones"),
        _real("all_rejected", _SEQ, "all rejected gradients, of this step and through the momentum of earlier ones"),
        _real("past", _SEQ, "−⟨g_i, p⟩: what earlier steps left in the momentum"),
        _real("decay", _SEQ, "−λ_d⟨g_i, θ⟩ − ωγ⟨g_i, Pθ⟩: weight decay"),
        _real("rounding", _SEQ, "total less all parts: what the weights' type could not hold"),
        _real("total", _SEQ, "⟨g_i, Δθ⟩ with the weights as they were stored before and after the step"),
        Column("metric", "string", "", "applied: P of this step; previous: P of the step before"),
    ),
    unique=("step", "rank", "pair_id", "side"),
)

LAYERS = Table(
    "layers",
    "one layer of one pair at one recorded step; squared norms and inner products add up to the pair's",
    (
        _STEP,
        _PAIR,
        Column(
            "layer",
            "string",
            "",
            "embedding, block number, final_norm or head; a tied head counts as embedding",
        ),
        Column("depth", "int32", "", "position of the layer from input to output, from 0"),
        _real("grad_norm_chosen", _GRAD, "‖g_w‖ over the layer's parameters"),
        _real("grad_norm_rejected", _GRAD, "‖g_l‖ over the layer's parameters"),
        _real("grad_inner", _INNER, "⟨g_w, g_l⟩ over the layer's parameters"),
    ),
)

TOKENS = Table(
    "tokens",
    "one tracked pair at one recorded step",
    (
        _STEP,
        _PAIR,
        Column("side", "string", "", "chosen_rejected, chosen or rejected: whose tokens the rows and columns are"),
        Column("tokens_rows", "list<string>", "", "token strings of the rows"),
        Column("tokens_columns", "list<string>", "", "token strings of the columns"),
        Column("inner", "list<float64>", _INNER, "token Gram, row by row"),
        Column("cosine", "list<float64>", "1", "its cosines, row by row"),
    ),
)

MASS = Table(
    "mass",
    "one probe response at one recorded step, teacher-forced",
    (
        _STEP,
        Column("prompt_id", "string", "", "hash of the prompt's text"),
        Column("kind", "string", "", "response kind (chosen, rejected, random_permute, …)"),
        Column("tokens", "int32", "tokens", "response tokens"),
        _real("logp", _SEQ, "log π(y|x), summed over response tokens"),
        _real("logp_token", "nats/token", "log π(y|x) divided by the number of tokens"),
        _real("argmax_logp", _SEQ, "Σ_t log max_v π_t(v)"),
        _real("not_argmax_logp", _SEQ, "Σ_t log(1 − max_v π_t(v))"),
        _real("entropy", "nats/token", "mean entropy of π_t"),
        _real("rank", "1", "mean number of tokens more probable than the target; an equally probable one counts ½"),
        _real("top1", "share", "share of positions whose most probable token is the target; a tie is split"),
        _real("residual", "1", "mean ‖π_t − e_y‖₂"),
        _real("missing_mass", "1", "mean 1 − π_t(y)"),
        _real("rival_mass", "1", "mean probability of the most probable token other than the target"),
        _real("prob_norm", "1", "mean ‖π_t‖₂"),
        _real("a_norm", "1", "‖A‖_F = sqrt(V·mean‖π_t‖² + V − 2)"),
    ),
)

DISTRIBUTIONS = Table(
    "distributions",
    "one position of a probe response at the first or the last measurement, with the model's next-token distribution",
    (
        _STEP,
        Column("first_step", "int32", "step", "step of the first measurement, to which the columns first_… belong"),
        Column("prompt_id", "string", "", "hash of the prompt's text"),
        Column("kind", "string", "", "response kind (chosen, rejected)"),
        Column("position", "int32", "tokens", "index of the response token that comes next, from 0"),
        Column("tokens", "list<string>", "", "the target and the ten most probable tokens of either measurement"),
        Column("target", "int32", "", "index in tokens of the target, the response's own token"),
        Column("probabilities", "list<float64>", "probability", "π_t of these tokens"),
        Column("first_probabilities", "list<float64>", "probability", "the same at the first measurement"),
        _real("rest", "probability", "1 − their sum: probability of all other tokens"),
        _real("first_rest", "probability", "the same at the first measurement"),
    ),
)

EXAMPLES = Table(
    "examples",
    "one pair of the data, as text",
    (
        replace(_PAIR, required=True),
        Column("prompt", "string", "", "prompt text, decoded from the measured tokens; cuts are marked"),
        Column("chosen", "string", "", "chosen response text, likewise"),
        Column("rejected", "string", "", "rejected response text, likewise"),
        Column("source", "string", "", "file and line, or generator and number"),
    ),
    unique=("pair_id",),
)

TABLES: dict[str, Table] = {
    table.name: table for table in (PAIRS, PUSHES, GRAMS, FINAL, STEPS, LAYERS, TOKENS, MASS, DISTRIBUTIONS, EXAMPLES)
}

CASES: dict[int, str] = {
    1: "chosen up, rejected down",
    2: "both down",
    3: "both up",
    4: "chosen down, rejected up",
}

# Fields of run.json that only the writer fills; a recorder may add any other field.
MANIFEST: dict[str, str] = {
    "schema_version": f"version of these tables, now {SCHEMA_VERSION}; an older reader refuses a newer one",
    "dyn_probe_version": "version of dyn-probe that opened the trace",
    "status": "recording, closed, or stopped; a process that was killed leaves recording",
    "created": "UTC time at which the trace was first opened",
    "closed": "UTC time of closing, null before",
    "reason": "why the recording stopped, null otherwise",
    "session": "one string per launch, the same for all its processes",
    "resumes": "one entry per resume: segment (the number in its streams' names), at (UTC time), and step: "
    "rows of this step and later recorded before it are no longer read; null where all are kept",
    "unmerged": "why the streams were not merged into Parquet when the trace was closed, null if they were",
}


if __name__ == "__main__":
    from dyn_probe.trace.docs import schema_markdown

    print(schema_markdown())
