"""Every column of every table: name, type, unit, meaning. The one source for writer, reader and docs.

Letters as in docs/notation.md: ``a``, ``b`` are the chosen and rejected log-probability, ``g_w``, ``g_l``
their gradients over all trained parameters, ``d_w``, ``d_l`` the pulls, ``K`` the Gram of the batch.

``python -m dyn_probe.trace.schema`` prints all of it as Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SCHEMA_VERSION = 2


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
        _real("pull_chosen", "1", "d_w = −∂ℓ/∂a"),
        _real("pull_rejected", "1", "d_l = ∂ℓ/∂b"),
        _real("grad_norm_chosen", _GRAD, "‖g_w‖, g_w = ∇a over all trained parameters"),
        _real("grad_norm_rejected", _GRAD, "‖g_l‖, g_l = ∇b over all trained parameters"),
        _real("grad_inner", _INNER, "⟨g_w, g_l⟩"),
        _real("grad_cosine", "1", "⟨g_w, g_l⟩ / (‖g_w‖‖g_l‖)"),
        Column(
            "case",
            "int32",
            "",
            "1 chosen up and rejected down, 2 both down, 3 both up, 4 chosen down and rejected up",
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
            "Δa from one plain gradient step on the mean loss of the whole batch (full Gram)",
        ),
        _real(
            "batch_delta_rejected",
            _SEQ,
            "Δb from one plain gradient step on the mean loss of the whole batch (full Gram)",
        ),
        _real("realised_delta_chosen", _SEQ, "a after the optimizer's update minus a before it"),
        _real("realised_delta_rejected", _SEQ, "b after the optimizer's update minus b before it"),
        _real("update_delta_chosen", _SEQ, "Δa = ⟨g_w, Δθ⟩ with the optimizer's own update Δθ: first order, real step"),
        _real(
            "update_delta_rejected", _SEQ, "Δb = ⟨g_l, Δθ⟩ with the optimizer's own update Δθ: first order, real step"
        ),
        _real("gate", "1", "g of Gate-DPO: factor on the rejected contribution"),
        _real("gate_statistic", "probability", "s of Gate-DPO: the rejected token probability the gate reads"),
        _real("rho", "1", "ρ of AdaDPO: factor on the chosen contribution"),
        _real("normaliser_chosen", "1", "factor by which a pairwise-normalised update rescaled d_w"),
        _real("normaliser_rejected", "1", "factor by which a pairwise-normalised update rescaled d_l"),
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
            "true where the gradients took a backward of their own: the loss gave no usable pull",
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
        _real("grad_norm_clipped", _GRAD, "the same after clipping: what the optimizer saw"),
        _real("logp_chosen", _SEQ, "mean a"),
        _real("logp_rejected", _SEQ, "mean b"),
        _real("margin", _SEQ, "mean of (a − r_w) − (b − r_l); without a reference, of a − b"),
        _real("accuracy", "share", "share of pairs whose margin is above 0"),
        _real("eval_logp_chosen", _SEQ, "mean a of the held-out pairs, before the step"),
        _real("eval_logp_rejected", _SEQ, "mean b of the held-out pairs, before the step"),
        _real("eval_margin", _SEQ, "mean margin of the held-out pairs, before the step"),
        _real("eval_accuracy", "share", "share of held-out pairs whose margin is above 0, before the step"),
        _real("step_seconds", "s", "wall time of the whole step, recorder included"),
        _real("law1_error", "1", "relative error of cᵀKc = ‖∇loss‖² where the full Gram was recorded"),
        Column("separate_rows", "int32", "rows", "rows whose gradients needed a backward of their own"),
    ),
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
        Column("depth", "int32", "", "order of the layers from input to output, from 0"),
        _real("grad_norm_chosen", _GRAD, "‖g_w‖ over the layer's parameters"),
        _real("grad_norm_rejected", _GRAD, "‖g_l‖ over the layer's parameters"),
        _real("grad_inner", _INNER, "⟨g_w, g_l⟩ over the layer's parameters"),
    ),
)

TOKENS = Table(
    "tokens",
    "one followed pair at one recorded step",
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
        _real("rank", "1", "mean number of tokens more probable than the target; one as probable counts ½"),
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
    "one position of a probe response at the first or the last measurement: what the model would say next",
    (
        _STEP,
        Column("first_step", "int32", "step", "step of the first measurement, which the columns first_… are from"),
        Column("prompt_id", "string", "", "hash of the prompt's text"),
        Column("kind", "string", "", "response kind (chosen, rejected)"),
        Column("position", "int32", "tokens", "which token of the response is next, counted from 0"),
        Column("tokens", "list<string>", "", "the target and the ten most probable tokens of either measurement"),
        Column("target", "int32", "", "place of the target, the response's own token, in tokens (from 0)"),
        Column("probabilities", "list<float64>", "probability", "π_t of these tokens"),
        Column("first_probabilities", "list<float64>", "probability", "the same at the first measurement"),
        _real("rest", "probability", "1 − their sum: what all other tokens have"),
        _real("first_rest", "probability", "the same at the first measurement"),
    ),
)

EXAMPLES = Table(
    "examples",
    "one pair of the data, as text",
    (
        replace(_PAIR, required=True),
        Column("prompt", "string", "", "prompt text"),
        Column("chosen", "string", "", "chosen response text"),
        Column("rejected", "string", "", "rejected response text"),
        Column("source", "string", "", "file and line, or generator and number"),
    ),
    unique=("pair_id",),
)

TABLES: dict[str, Table] = {
    table.name: table for table in (PAIRS, STEPS, LAYERS, TOKENS, MASS, DISTRIBUTIONS, EXAMPLES)
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
