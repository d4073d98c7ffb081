"""One table: every preference objective, its hyper-parameters and what its dynamics look like. No torch.

A new objective needs a function in formulas.py and one row here; the tests of every law then run over it. The
smallest row::

    "mine": Objective("mine", formulas.mine, {"beta": 0.1}, needs_reference=True, score=scores.LOG_RATIO, formula="…",
                      paper="…", when="…", dynamics="…")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dyn_probe.errors import BadInput, unknown
from dyn_probe.objectives import formulas, scores
from dyn_probe.objectives.options import Value, parse, resolve
from dyn_probe.objectives.table import Objective

_ROWS = (
    Objective(
        "dpo", formulas.dpo, {"beta": 0.1, "label_smoothing": 0.0}, True, scores.LOG_RATIO,
        vanishing=lambda p: p["label_smoothing"] > 0,
        formula="−log σ(β(h_w − h_l))",
        paper="Rafailov et al. 2023 (arXiv 2305.18290); label smoothing: Mitchell 2023 (cDPO)",
        when="The baseline for every comparison. Label smoothing if labels are noisy.",
        dynamics="d_w = d_l: the loss constrains only the margin. Chosen rises only where ⟨g_w,g_l⟩ ≤ ‖g_w‖²; "
        "on pairs that share most of their tokens both log-probabilities tend to fall. The pulls shrink as the "
        "margin grows.",
        notes="With label smoothing both pulls turn negative once σ(margin) is above 1 − ε.",
    ),
    Objective(
        "rdpo", formulas.rdpo, {"beta": 0.1, "alpha": 0.2}, True, scores.LOG_RATIO, changes=("length",),
        formula="−log σ(β(h_w − h_l) + α(n_w − n_l))",
        paper="Park et al. 2024 (arXiv 2403.19159)",
        when="When training makes responses longer and the chosen ones are longer on average.",
        dynamics="d_w = d_l as in DPO, hence the same condition; pairs whose chosen response is longer saturate early, "
        "those whose chosen response is shorter keep their pulls.",
        notes="+α: derived from the length-penalised reward. α = 0.2 was used on TL;DR; it is in nats per "
        "token.",
    ),
    Objective(
        "simpo", formulas.simpo, {"beta": 2.0, "gamma": 0.5}, False, scores.MEAN_LOG_PROB,
        formula="−log σ(β(ā − b̄) − γ)",
        paper="Meng et al. 2024 (arXiv 2405.14734)",
        when="No memory for a reference model, or responses of very different lengths.",
        dynamics="d_w/d_l = n_l/n_w: the shorter response has the larger pull. Nothing anchors the policy to "
        "a reference, so both log-probabilities can drift far.",
    ),
    Objective(
        "ipo", formulas.ipo, {"beta": 0.1, "average": True}, True, scores.LOG_RATIO,
        score_if={"average": scores.MEAN_LOG_RATIO},
        target=lambda p: f"a margin of {1 / (2 * p['beta']):g} nats per {'token' if p['average'] else 'sequence'}",
        formula="(h_w/n_w − h_l/n_l − 1/(2β))²; average=false: (h_w − h_l − 1/(2β))²",
        paper="Azar et al. 2023 (arXiv 2310.12036)",
        when="When DPO keeps widening the margin of pairs that it already orders correctly.",
        dynamics="The pulls shrink linearly to 0 at the target margin and turn negative beyond it; d_w/d_l = "
        "n_l/n_w (1 without averaging).",
        notes="Averaging per token is what the authors confirmed. The target margin is 1/(2β): 5 nats per token at "
        "β = 0.1.",
    ),
    Objective(
        "rrhf", formulas.rrhf, {"lambda": 1.0}, False, scores.MEAN_LOG_PROB, likelihood=True,
        formula="max(0, b̄ − ā) − λa",
        paper="Z. Yuan et al. 2023 (arXiv 2304.05302)",
        when="Ranking plus imitation, when the chosen responses are worth imitating.",
        dynamics="d_w = λ + 1/n_w and d_l = 1/n_l while the pair is misordered, then λ and 0: imitation dominates, "
        "chosen rises, and rejected rises with it where the two gradients are aligned.",
    ),
    Objective(
        "slic_hf", formulas.slic_hf, {"delta": 1.0, "lambda": 1.0}, False, scores.LOG_PROB, likelihood=True,
        formula="max(0, δ − a + b) − λa",
        paper="Zhao et al. 2023 (arXiv 2305.10425)",
        when="A margin that stops pushing once it is reached, plus imitation of the chosen response.",
        dynamics="d_w = 1 + λ and d_l = 1 until a − b ≥ δ, then λ and 0: chosen rises wherever ⟨g_w,g_l⟩ ≤ "
        "(1 + λ)‖g_w‖².",
    ),
    Objective(
        "cpo", formulas.cpo, {"beta": 0.1, "lambda": 1.0, "mean_nll": False}, False, scores.LOG_PROB,
        likelihood=True,
        formula="−log σ(β(a − b)) − λa; mean_nll=true: −λā",
        paper="Xu et al. 2024 (arXiv 2401.08417)",
        when="No reference model, and the chosen responses are good enough to imitate.",
        dynamics="d_w = d_l + λ with d_l < β: imitation dominates, chosen rises, rejected often rises with "
        "it. With mean_nll, d_w = d_l + λ/n_w, closer to plain ranking.",
        notes="TRL uses the per-token mean (mean_nll) for the likelihood term.",
    ),
    Objective(
        "dpop", formulas.dpop, {"beta": 0.1, "lambda": 50.0}, True, scores.LOG_RATIO, changes=("chosen",),
        vanishing=lambda p: False,
        formula="−log σ(β(h_w − h_l − λ max(0, −h_w)))",
        paper="Pal et al. 2024 (arXiv 2402.13228)",
        when="Pairs with few differing tokens, where plain DPO lowers the chosen response.",
        dynamics="DPO while chosen is above its reference; below it d_w/d_l = 1 + λ, which pulls chosen back up, often "
        "together with rejected.",
    ),
    Objective(
        "kto", formulas.kto, {"beta": 0.1, "lambda_w": 1.0, "lambda_l": 1.0}, True, scores.LOG_RATIO,
        terms=("kl",), columns={"kl": lambda t, p: t.need("kl")},
        formula="λ_w(1 − σ(βh_w − z)) + λ_l(1 − σ(z − βh_l)), z = β·max(0, KL)",
        paper="Ethayarajh et al. 2024 (arXiv 2402.01306)",
        when="Feedback on single responses, or unreliable pairing.",
        dynamics="Each side has its own pull, largest (λβ/4) where βh = z and smaller on both sides of it: "
        "responses far above or far below the reference point have almost none.",
        notes="KL from mismatched prompts and responses of the batch (kl_estimate), with no gradient "
        "through z.",
    ),
    Objective(
        "sppo", formulas.sppo, {"beta": 0.001, "soft": False}, True, scores.LOG_RATIO,
        terms_if={"soft": ("win_w", "win_l")},
        target=lambda p: f"±{1 / (2 * p['beta']):g}" + (" · (2P − 1)" if p["soft"] else "") + " nats on the log-ratios",
        formula="(h_w − 1/(2β))² + (h_l + 1/(2β))²; soft=true: targets (P_w − ½)/β and (P_l − ½)/β",
        paper="Wu et al. 2024 (arXiv 2405.00675)",
        when="When each log-ratio should reach its own target, not just a margin.",
        dynamics="d_w = 2(1/(2β) − h_w), d_l = 2(h_l + 1/(2β)): far from the targets both pulls are near 1/β; a "
        "chosen response that has fallen is pulled harder; the push on rejected vanishes at its target and reverses "
        "beyond it.",
        notes="1/β is the paper's η, 10³ there and in the official code: the targets of the hard form are ±500 nats on "
        "summed log-ratios, which training does not reach, so neither pull reverses. The pulls are then near 1000: "
        "AdamW, RMSprop and clipping divide this scale out; with plain SGD take a smaller learning rate. At β = 0.1 "
        "the targets are ±5 nats, which a rejected response soon passes; record warns when a pull reverses. The "
        "official code halves the squares. Soft form: P, the probability that chosen beats rejected, is read from the "
        "data (win_probability); P_w = P and P_l = 1 − P, as sppo_single of the official code has it. The hard form "
        "takes P = 1.",
    ),
    Objective(
        "orpo", formulas.orpo, {"lambda": 0.1}, False, scores.LOG_ODDS, balance=formulas.both_log_odds,
        likelihood=True,
        formula="−ā − λ log σ(log-odds(e^ā) − log-odds(e^b̄))",
        paper="Hong et al. 2024 (arXiv 2403.07691)",
        when="Supervised and preference training in one stage, without a reference model.",
        dynamics="Imitation (d_w ≥ 1/n_w) with a small push on rejected, λ(1 − σ)/((1 − e^b̄)n_l): chosen rises; "
        "rejected rises too while the two are similar, and is pushed down hardest where it is almost certain.",
    ),
    Objective(
        "cal_dpo", formulas.cal_dpo, {"beta": 0.1, "kappa": 1.0}, True, scores.LOG_RATIO, changes=("chosen",),
        target=lambda p: f"±{1 / (2 * p['beta']):g} nats on the log-ratios",
        formula="−log σ(h_w − h_l) + κ[(h_w − 1/(2β))² + (h_l + 1/(2β))²]",
        paper="Xiao et al. 2024 (arXiv 2412.14516)",
        when="When DPO lowers the chosen response and a target for each side is acceptable.",
        dynamics="The calibration term dominates: it draws the log-ratios to ±1/(2β), so the pull on a chosen "
        "response that has fallen grows, and the push on rejected reverses beyond its target.",
        notes="No β inside the sigmoid. The official code uses κ = 1 and κ = ½. With a very small β the targets "
        "±1/(2β) are hundreds of nats away (±500 at β = 0.001) and gradients explode.",
    ),
    Objective(
        "dpo_shift", formulas.dpo_shift, {"beta": 0.1, "lambda": 0.5, "schedule": False}, True, scores.LOG_RATIO,
        changes=("rejected",), vanishing=lambda p: False,
        terms_if={"schedule": ("progress",)}, columns={"shift": formulas.shift},
        formula="−log σ(β(h_w − λh_l)); schedule=true: λ rises linearly to 1 over training",
        paper="Yang et al. 2025 (arXiv 2502.07599)",
        when="To trade margin for a higher chosen log-probability with a single parameter.",
        dynamics="d_l = λd_w: chosen rises where ⟨g_w,g_l⟩ ≤ ‖g_w‖²/λ, rejected falls only where ⟨g_w,g_l⟩ "
        "≤ λ‖g_l‖². λ = 1 is DPO.",
    ),
    Objective(
        "sft", formulas.sft, {}, False, scores.MEAN_LOG_PROB,
        formula="−ā",
        paper="supervised fine-tuning; its dynamics: Ren & Sutherland 2024 (arXiv 2407.10490)",
        when="The warm-up before preference training: the policy learns to produce the chosen responses; the "
        "reference is frozen after it.",
        dynamics="d_l = 0: chosen rises, and rejected moves by d_w⟨g_w,g_l⟩, up where the gradients are "
        "aligned.",
        reads_rejected=False, stage=True,
    ),
    Objective(
        "extended_sft", formulas.extended_sft, {}, False, scores.MEAN_LOG_PROB,
        formula="−ā − b̄",
        paper="Ren & Sutherland 2024 (arXiv 2407.10490)",
        when="The warm-up before preference training, against squeezing.",
        dynamics="Pulls both responses up (d_l = −1/n_l): rejected is less improbable when preference training starts, "
        "so a negative gradient on it squeezes less.",
        stage=True,
    ),
)  # fmt: skip

OBJECTIVES: dict[str, Objective] = {row.name: row for row in _ROWS}
STAGES = tuple(row.name for row in _ROWS if row.stage)
SUPERVISED = STAGES[0]
"""The plain warm-up stage: the chosen response alone."""


def objective(name: str | Objective) -> Objective:
    """The row called ``name``, or BadInput with the choices."""
    if isinstance(name, Objective):
        return name
    if name not in OBJECTIVES:
        trained = [row.name for row in _ROWS if not row.stage]
        raise BadInput(f"{unknown('objective', name, trained)} (or a warm-up stage: {', '.join(STAGES)})")
    return OBJECTIVES[name]


def resolve_hyper(name: str | Objective, hyper: Mapping[str, Value] | None = None) -> dict[str, Any]:
    """The objective's hyper-parameters (those of a likelihood term too), ``hyper`` over its defaults; BadInput for what
    it does not have."""
    row = objective(name)
    return resolve(row.name, row.options, hyper)


def parse_objective(text: str) -> tuple[str, dict[str, Any]]:
    """``"ipo:beta=0.2,average=false"`` → the name and all its hyper-parameters."""
    name, given = parse(text)
    return name, resolve_hyper(name, given)
