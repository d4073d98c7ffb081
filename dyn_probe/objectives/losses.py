"""One table: every preference objective, its hyper-parameters and what its dynamics look like. No torch.

A new objective needs a function in formulas.py and one row here; the tests of every law then run over it. The
smallest row::

    "mine": Objective("mine", formulas.mine, {"beta": 0.1}, needs_reference=True, formula="…", paper="…",
                      when="…", dynamics="…", shapings=("gate-seq", "pairwise-normalised"))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dyn_probe.errors import BadInput, unknown
from dyn_probe.objectives import formulas
from dyn_probe.objectives.options import Value, parse, resolve
from dyn_probe.objectives.table import Objective

_FREE = ("gate-seq", "gate-q10", "pairwise-normalised")
_REFERENCED = (*_FREE, "token-mask")

_ROWS = (
    Objective(
        "dpo", formulas.dpo, {"beta": 0.1, "label_smoothing": 0.0}, True,
        formula="−log σ(β(h_w − h_l))",
        paper="Rafailov et al. 2023 (arXiv 2305.18290); label smoothing: Mitchell 2023 (cDPO)",
        when="The baseline for every comparison. Label smoothing if labels are noisy.",
        dynamics="d_w = d_l: the loss constrains only the margin. Chosen rises only where ⟨g_w,g_l⟩ ≤ ‖g_w‖²; "
        "on pairs that share most of their tokens both log-probabilities tend to fall. The pulls shrink as the "
        "margin grows.",
        notes="With label smoothing both pulls turn negative once σ(margin) is above 1 − ε.",
        shapings=(*_REFERENCED, "adadpo"),
    ),
    Objective(
        "rdpo", formulas.rdpo, {"beta": 0.1, "alpha": 0.2}, True,
        formula="−log σ(β(h_w − h_l) + α(n_w − n_l))",
        paper="Park et al. 2024 (arXiv 2403.19159)",
        when="When training makes responses longer and the chosen ones are longer on average.",
        dynamics="d_w = d_l as in DPO, hence the same condition; pairs whose chosen response is longer saturate early, "
        "those whose chosen response is shorter keep their pulls.",
        notes="+α: derived from the length-penalised reward. α = 0.2 was used on TL;DR; it is in nats per "
        "token.",
        shapings=(*_REFERENCED, "adadpo"),
    ),
    Objective(
        "simpo", formulas.simpo, {"beta": 2.0, "gamma": 0.5}, False,
        formula="−log σ(β(ā − b̄) − γ)",
        paper="Meng et al. 2024 (arXiv 2405.14734)",
        when="No memory for a reference model, or responses of very different lengths.",
        dynamics="d_w/d_l = n_l/n_w: the shorter response has the larger pull. Nothing anchors the policy to "
        "a reference, so both log-probabilities can drift far.",
        shapings=(*_FREE, "adadpo"),
    ),
    Objective(
        "ipo", formulas.ipo, {"beta": 0.1, "average": True}, True,
        formula="(h_w/n_w − h_l/n_l − 1/(2β))²; average=false: (h_w − h_l − 1/(2β))²",
        paper="Azar et al. 2023 (arXiv 2310.12036)",
        when="When DPO keeps widening the margin of pairs that it already orders correctly.",
        dynamics="The pulls shrink linearly to 0 at the target margin and turn negative beyond it; d_w/d_l = "
        "n_l/n_w (1 without averaging).",
        notes="Averaging per token is what the authors confirmed. The target margin is 1/(2β).",
        shapings=(*_REFERENCED, "adadpo"),
    ),
    Objective(
        "rrhf", formulas.rrhf, {"lambda": 1.0}, False,
        formula="max(0, b̄ − ā) − λa",
        paper="Z. Yuan et al. 2023 (arXiv 2304.05302)",
        when="Ranking plus imitation, when the chosen responses are worth imitating.",
        dynamics="d_w = λ + 1/n_w and d_l = 1/n_l while the pair is misordered, then λ and 0: imitation dominates, "
        "chosen rises, and rejected rises with it where the two gradients are aligned.",
        shapings=_FREE,
    ),
    Objective(
        "slic_hf", formulas.slic_hf, {"delta": 1.0, "lambda": 1.0}, False,
        formula="max(0, δ − a + b) − λa",
        paper="Zhao et al. 2023 (arXiv 2305.10425)",
        when="A margin that stops pushing once it is reached, plus imitation of the chosen response.",
        dynamics="d_w = 1 + λ and d_l = 1 until a − b ≥ δ, then λ and 0: chosen rises wherever ⟨g_w,g_l⟩ ≤ "
        "(1 + λ)‖g_w‖².",
        shapings=_FREE,
    ),
    Objective(
        "cpo", formulas.cpo, {"beta": 0.1, "lambda": 1.0, "mean_nll": False}, False,
        formula="−log σ(β(a − b)) − λa; mean_nll=true: −λā",
        paper="Xu et al. 2024 (arXiv 2401.08417)",
        when="No reference model, and the chosen responses are good enough to imitate.",
        dynamics="d_w = d_l + λ with d_l < β: imitation dominates, chosen rises, rejected often rises with "
        "it. With mean_nll, d_w = d_l + λ/n_w, closer to plain ranking.",
        notes="TRL uses the per-token mean (mean_nll) for the likelihood term.",
        shapings=(*_FREE, "adadpo"),
    ),
    Objective(
        "dpop", formulas.dpop, {"beta": 0.1, "lambda": 50.0}, True,
        formula="−log σ(β(h_w − h_l − λ max(0, −h_w)))",
        paper="Pal et al. 2024 (arXiv 2402.13228)",
        when="Pairs with few differing tokens, where plain DPO lowers the chosen response.",
        dynamics="DPO while chosen is above its reference; below it d_w/d_l = 1 + λ, which pulls chosen back up, often "
        "together with rejected.",
        shapings=_REFERENCED,
    ),
    Objective(
        "kto", formulas.kto, {"beta": 0.1, "lambda_w": 1.0, "lambda_l": 1.0}, True, terms=("kl",),
        formula="λ_w(1 − σ(βh_w − z)) + λ_l(1 − σ(z − βh_l)), z = β·max(0, KL)",
        paper="Ethayarajh et al. 2024 (arXiv 2402.01306)",
        when="Feedback on single responses, or unreliable pairing.",
        dynamics="Each side has its own pull, largest (λβ/4) where βh = z and smaller on both sides of it: "
        "responses far above or far below the reference point have almost none.",
        notes="KL from mismatched prompts and responses of the batch (kl_estimate), with no gradient "
        "through z.",
        shapings=_REFERENCED,
    ),
    Objective(
        "sppo", formulas.sppo, {"beta": 0.1, "soft": False}, True, terms_if={"soft": ("win_w", "win_l")},
        formula="(h_w − 1/(2β))² + (h_l + 1/(2β))²; soft=true: targets (P_w − ½)/β and (P_l − ½)/β",
        paper="Wu et al. 2024 (arXiv 2405.00675)",
        when="When each log-ratio should reach its own target, not just a margin.",
        dynamics="d_w = −2(h_w − 1/(2β)), d_l = 2(h_l + 1/(2β)): a chosen response that has fallen is pulled harder; "
        "the push on rejected vanishes at its target and reverses beyond it.",
        notes="P: probability that a response beats the policy; the hard form sets it to 1 and 0.",
        shapings=_REFERENCED,
    ),
    Objective(
        "orpo", formulas.orpo, {"lambda": 0.1}, False,
        formula="−ā − λ log σ(log-odds(e^ā) − log-odds(e^b̄))",
        paper="Hong et al. 2024 (arXiv 2403.07691)",
        when="Supervised and preference training in one stage, without a reference model.",
        dynamics="Imitation (d_w ≥ 1/n_w) with a small push on rejected, λ(1 − σ)/((1 − e^b̄)n_l): chosen rises; "
        "rejected rises too while the two are similar, and is pushed down hardest where it is almost certain.",
        shapings=(*_FREE, "adadpo"),
    ),
    Objective(
        "cal_dpo", formulas.cal_dpo, {"beta": 0.1, "kappa": 1.0}, True,
        formula="−log σ(h_w − h_l) + κ[(h_w − 1/(2β))² + (h_l + 1/(2β))²]",
        paper="Xiao et al. 2024 (arXiv 2412.14516)",
        when="When DPO lowers the chosen response and a target for each side is acceptable.",
        dynamics="The calibration term dominates: it draws the log-ratios to ±1/(2β), so the pull on a chosen "
        "response that has fallen grows, and the push on rejected reverses beyond its target.",
        notes="No β inside the sigmoid. The official code uses κ = 1 and κ = ½. With a very small β the targets "
        "±1/(2β) are hundreds of nats away and gradients explode.",
        shapings=_REFERENCED,
    ),
    Objective(
        "dpo_shift", formulas.dpo_shift, {"beta": 0.1, "lambda": 0.5, "schedule": False}, True,
        terms_if={"schedule": ("progress",)},
        formula="−log σ(β(h_w − λh_l)); schedule=true: λ rises linearly to 1 over training",
        paper="Yang et al. 2025 (arXiv 2502.07599)",
        when="To trade margin for a higher chosen log-probability with a single parameter.",
        dynamics="d_l = λd_w: chosen rises where ⟨g_w,g_l⟩ ≤ ‖g_w‖²/λ, rejected falls only where ⟨g_w,g_l⟩ "
        "≤ λ‖g_l‖². λ = 1 is DPO.",
        shapings=_REFERENCED,
    ),
    Objective(
        "sft", formulas.sft, {}, False,
        formula="−ā",
        paper="supervised fine-tuning; its dynamics: Ren & Sutherland 2024 (arXiv 2407.10490)",
        when="The warm-up before preference training: the policy learns to produce the chosen responses; the "
        "reference is frozen after it.",
        dynamics="d_l = 0: chosen rises, and rejected moves by d_w⟨g_w,g_l⟩, up where the gradients are "
        "aligned.",
        stage=True,
    ),
    Objective(
        "extended_sft", formulas.extended_sft, {}, False,
        formula="−ā − b̄",
        paper="Ren & Sutherland 2024 (arXiv 2407.10490)",
        when="The warm-up before preference training, against squeezing.",
        dynamics="Pulls both responses up (d_l = −1/n_l): rejected is less improbable when preference training starts, "
        "so a negative gradient on it squeezes less.",
        stage=True,
    ),
)  # fmt: skip

OBJECTIVES: dict[str, Objective] = {row.name: row for row in _ROWS}


def objective(name: str | Objective) -> Objective:
    """The row called ``name``, or BadInput with the choices."""
    if isinstance(name, Objective):
        return name
    if name not in OBJECTIVES:
        trained, stages = ([row.name for row in _ROWS if row.stage is stage] for stage in (False, True))
        raise BadInput(f"{unknown('objective', name, trained)} (or a warm-up stage: {', '.join(stages)})")
    return OBJECTIVES[name]


def resolve_hyper(name: str | Objective, hyper: Mapping[str, Value] | None = None) -> dict[str, Any]:
    """The objective's hyper-parameters, ``hyper`` over its defaults; BadInput for what it does not have."""
    row = objective(name)
    return resolve(row.name, row.defaults, hyper)


def parse_objective(text: str) -> tuple[str, dict[str, Any]]:
    """``"ipo:beta=0.2,average=false"`` → the name and all its hyper-parameters."""
    name, given = parse(text)
    return name, resolve_hyper(name, given)
