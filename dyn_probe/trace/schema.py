"""Every column of every table: name, type, unit, meaning. The one source for writer, reader, report and docs.

Letters as in docs/notation.md: ``a``, ``b`` are the chosen and rejected log-probability, ``g_w``, ``g_l`` their
gradients over all trained parameters, ``d_w``, ``d_l`` the pulls, ``K`` the Gram of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Column:
    """One column: Arrow type by name, unit, and what it means (with its formula)."""

    name: str
    type: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """One table: what a row is, and its columns in order."""

    name: str
    row: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


_STEP = Column("step", "int64", "step", "optimizer step, counted from 0")
_PAIR = Column("pair_id", "string", "", "hash of the pair's prompt and response token ids")
_RANK = Column("rank", "int32", "", "process that trained on the pair")

PAIRS = Table(
    "pairs",
    "one pair at one recorded step",
    (
        _STEP,
        _PAIR,
        _RANK,
        Column("logp_chosen", "float64", "nats/sequence", "a = log π(y_w|x), summed over response tokens, before the update"),
        Column("logp_rejected", "float64", "nats/sequence", "b = log π(y_l|x), summed over response tokens, before the update"),
        Column("ref_logp_chosen", "float64", "nats/sequence", "r_w: the same under the reference policy"),
        Column("ref_logp_rejected", "float64", "nats/sequence", "r_l: the same under the reference policy"),
        Column("len_chosen", "int32", "tokens", "n_w: response tokens of chosen"),
        Column("len_rejected", "int32", "tokens", "n_l: response tokens of rejected"),
        Column("loss", "float64", "nats", "ℓ of this pair"),
        Column("pull_chosen", "float64", "1", "d_w = −∂ℓ/∂a"),
        Column("pull_rejected", "float64", "1", "d_l = ∂ℓ/∂b"),
        Column("grad_norm_chosen", "float64", "nats/parameter unit", "‖g_w‖, g_w = ∇a over all trained parameters"),
        Column("grad_norm_rejected", "float64", "nats/parameter unit", "‖g_l‖, g_l = ∇b over all trained parameters"),
        Column("grad_inner", "float64", "(nats/parameter unit)²", "⟨g_w, g_l⟩"),
        Column("grad_cosine", "float64", "1", "⟨g_w, g_l⟩ / (‖g_w‖‖g_l‖)"),
        Column("case", "int32", "", "1 chosen up and rejected down, 2 both down, 3 both up, 4 chosen down and rejected up"),
        Column("predicted_delta_chosen", "float64", "nats/sequence", "Δa = η(d_w‖g_w‖² − d_l⟨g_w,g_l⟩): one plain gradient step on this pair alone"),
        Column("predicted_delta_rejected", "float64", "nats/sequence", "Δb = η(d_w⟨g_w,g_l⟩ − d_l‖g_l‖²): one plain gradient step on this pair alone"),
        Column("batch_delta_chosen", "float64", "nats/sequence", "Δa from one plain gradient step on the mean loss of the whole batch (full Gram)"),
        Column("batch_delta_rejected", "float64", "nats/sequence", "Δb from one plain gradient step on the mean loss of the whole batch (full Gram)"),
        Column("realised_delta_chosen", "float64", "nats/sequence", "a after the optimizer's update minus a before it"),
        Column("realised_delta_rejected", "float64", "nats/sequence", "b after the optimizer's update minus b before it"),
        Column("gate", "float64", "1", "g of Gate-DPO: factor on the rejected contribution"),
        Column("gate_statistic", "float64", "probability", "s of Gate-DPO: the rejected token probability the gate reads"),
        Column("rho", "float64", "1", "ρ of AdaDPO: factor on the chosen contribution"),
        Column("normaliser_chosen", "float64", "1", "factor by which a pairwise-normalised update rescaled d_w"),
        Column("normaliser_rejected", "float64", "1", "factor by which a pairwise-normalised update rescaled d_l"),
        Column("mask_chosen", "float64", "1", "mean token mask m_w of the chosen response"),
        Column("mask_rejected", "float64", "1", "mean token mask m_l of the rejected response"),
        Column("separate_backward", "bool", "", "true where the gradients came from a backward of their own, because the loss gave this row no usable pull"),
    ),
)

STEPS = Table(
    "steps",
    "one optimizer step of one process",
    (
        _STEP,
        _RANK,
        Column("pairs", "int32", "pairs", "pairs this process trained on in the step"),
        Column("loss", "float64", "nats", "mean loss over these pairs"),
        Column("learning_rate", "float64", "1", "η of the step"),
        Column("grad_norm", "float64", "nats/parameter unit", "norm of the accumulated gradient before clipping"),
        Column("grad_norm_clipped", "float64", "nats/parameter unit", "the same after clipping: what the optimizer saw"),
        Column("logp_chosen", "float64", "nats/sequence", "mean a"),
        Column("logp_rejected", "float64", "nats/sequence", "mean b"),
        Column("margin", "float64", "nats/sequence", "mean of (a − r_w) − (b − r_l); without a reference, of a − b"),
        Column("accuracy", "float64", "share", "share of pairs whose margin is above 0"),
        Column("step_seconds", "float64", "s", "wall time of the whole step, recorder included"),
        Column("law1_error", "float64", "1", "relative error of cᵀKc = ‖∇loss‖² where the full Gram was recorded"),
        Column("separate_rows", "int32", "rows", "rows whose gradients needed a backward of their own"),
    ),
)

LAYERS = Table(
    "layers",
    "one layer of one pair at one recorded step; squared norms and inner products add up to the pair's",
    (
        _STEP,
        _PAIR,
        Column("layer", "string", "", "embedding, block number, final_norm or head; a tied head counts as embedding"),
        Column("depth", "int32", "", "order of the layers from input to output, from 0"),
        Column("grad_norm_chosen", "float64", "nats/parameter unit", "‖g_w‖ over the layer's parameters"),
        Column("grad_norm_rejected", "float64", "nats/parameter unit", "‖g_l‖ over the layer's parameters"),
        Column("grad_inner", "float64", "(nats/parameter unit)²", "⟨g_w, g_l⟩ over the layer's parameters"),
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
        Column("inner", "list<float64>", "(nats/parameter unit)²", "token Gram, row by row"),
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
        Column("logp", "float64", "nats/sequence", "log π(y|x), summed over response tokens"),
        Column("logp_token", "float64", "nats/token", "log π(y|x) divided by the number of tokens"),
        Column("argmax_logp", "float64", "nats/sequence", "Σ_t log max_v π_t(v)"),
        Column("not_argmax_logp", "float64", "nats/sequence", "Σ_t log(1 − max_v π_t(v))"),
        Column("entropy", "float64", "nats/token", "mean entropy of π_t"),
        Column("rank", "float64", "1", "mean rank of the target token, 0 is the top"),
        Column("top1", "float64", "share", "share of positions whose most probable token is the target"),
        Column("residual", "float64", "1", "mean ‖π_t − e_y‖₂"),
        Column("missing_mass", "float64", "1", "mean 1 − π_t(y)"),
        Column("a_norm", "float64", "1", "‖A‖_F = sqrt(V·mean‖π_t‖² + V − 2)"),
    ),
)

EXAMPLES = Table(
    "examples",
    "one pair of the data, as text",
    (
        _PAIR,
        Column("prompt", "string", "", "prompt text"),
        Column("chosen", "string", "", "chosen response text"),
        Column("rejected", "string", "", "rejected response text"),
        Column("source", "string", "", "file and line, or generator and number"),
    ),
)

TABLES: dict[str, Table] = {table.name: table for table in (PAIRS, STEPS, LAYERS, TOKENS, MASS, EXAMPLES)}

CASES: dict[int, str] = {
    1: "chosen up, rejected down",
    2: "both down",
    3: "both up",
    4: "chosen down, rejected up",
}
