"""One table: shapings of a pair's gradients, each with its options, and the objectives it composes with. No torch.

Letters as in docs/notation.md; ``sg[·]`` is a stop-gradient. A shaping is a function ``(objective, terms, options)
→ (terms, columns)`` and one row of SHAPINGS, which also says what it asks of the loop and which objectives it composes
with. Columns are named as in trace/schema.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from dyn_probe.errors import BadInput, unknown
from dyn_probe.objectives.calibrate import calibrate, observe, remember
from dyn_probe.objectives.gates import adadpo, adadpo_misfit, gate_q10, gate_seq
from dyn_probe.objectives.losses import OBJECTIVES
from dyn_probe.objectives.masking import make_token_mask, mask_penalty, masked_terms
from dyn_probe.objectives.normalise import in_metric, normalise
from dyn_probe.objectives.options import Value, parse, resolve
from dyn_probe.objectives.table import ChosenShaping, Objective, Reweighting, Shaping

_GATE_DYNAMICS = (
    "g multiplies the pull on rejected, which relaxes the condition for chosen to rise by a factor of 1/g; rejected "
    "responses that are already improbable are hardly pushed, which keeps mass from going to the argmax token."
)
_GATE_NOTES = (
    "form=value scales the rejected contribution inside the loss (reconstructed from the paper's description), "
    "which also changes the value of the loss; form=gradient does not. The author reports results "
    "for dpo, ipo, cal_dpo and dpo_shift; on other objectives the same rule is a reconstruction."
)

_BALANCED = ("dpo", "rdpo", "simpo", "ipo", "cpo", "orpo")
"""Objectives whose pair term adadpo can balance: both contributions enter one margin with equal weight."""

_Q10: dict[str, Value] = {"form": "value", "alpha": 50.0, "tau": 0.005, "q": 0.10}


_MASK_NOTES = (
    "The paper prints the l1 norm of the masks with a weight η_s, and leaves the slope and the learning of the "
    "read-out open. Ours: the norm is weighted with what the loss gives an average token, the mean size d of the "
    "pulls times the mean margin per token s (of log-ratios; of log-probabilities without a reference), so that "
    "η_s = 1 closes the tokens that add less to the margin than the average one; the penalty waits until s is "
    "above wait and stops where the mean mask of the pair is at most floor; k rises by a constant factor a step "
    "from slope_start to slope within the share anneal of the training; the read-out takes states divided by "
    "their l1 norm, at a learning rate of its own. Pulls are those on the masked sums, and the recorded gradients "
    "are those of the masked log-probabilities Σ_t m^t·log π^t, so no change of the unmasked ones is predicted "
    "from them. Objectives with a likelihood term are left out: it would be minimised by closing every mask. "
    "Tried on dpo with the built-in model and the four styles of the sentiment task (60 steps at 2e-4, seeds 0 to 2): "
    "mean mask at the end 0.98 to 1.00 on tokens that differ and at most 0.04 on shared ones, AUC 1.00, but for "
    "one seed of long-suffix (0.18, AUC 0.95). Change of chosen in nats, with the masks and (without): "
    "long-suffix −1.9, −1.6, −1.3 (−3.4, −5.9, −1.8), short-suffix −0.8, −0.5, −0.4 (−1.0, −2.5, −0.5), "
    "prefix-suffix −1.2, −4.0, −1.0 (−2.2, −16.9, −4.1), single-token −0.3, −0.2, −0.2 (−0.3, −0.1, −0.2), at "
    "nearly the same accuracy: chosen falls less, and still falls. ⟨g_w,g_l⟩ of the last step, of masked sums, is "
    "below 50 where the shared tokens are masked; with a suffix and no mask it is above 200."
)


def _lowest_gate(options: Mapping[str, Any]) -> float:
    """g at s = 0, σ(−ατ)."""
    x = float(options["alpha"]) * float(options["tau"])
    return math.exp(-x) / (1 + math.exp(-x))


def _closing(options: Mapping[str, Any]) -> bool:
    """Whether the gate can take the push on rejected out of reach of float32's squares."""
    return _lowest_gate(options) < 1e-9


_ROWS = (
    Shaping(
        "gate-seq", gate_seq, {"form": "value", "alpha": 50.0, "tau": 0.10}, ("gate", "gate_statistic"),
        formula="h_l → g·h_l, g = σ(α(s − τ)) detached, s = e^b̄",
        paper="Mouiche 2026, Gate-DPO (arXiv 2605.02626)",
        when="When rejected responses become very improbable and chosen falls with them.",
        dynamics=_GATE_DYNAMICS, notes=_GATE_NOTES, changes=("rejected",), vanishing=_closing,
    ),
    Shaping(
        "gate-q10", gate_q10, _Q10, ("gate", "gate_statistic"),
        formula="h_l → g·h_l, g = σ(α(s − τ)) detached, s = q-quantile of the rejected token "
        "probabilities",
        paper="Mouiche 2026, Gate-DPO (arXiv 2605.02626)",
        when="As gate-seq, if a few very improbable tokens matter more than the average.",
        dynamics=_GATE_DYNAMICS,
        notes=f"{_GATE_NOTES} By default g cannot fall below σ(−ατ) = {_lowest_gate(_Q10):.3f}.",
        needs=("token_logps", "response_mask"), changes=("rejected",), vanishing=_closing,
    ),
    Shaping(
        "adadpo", adadpo, {"space": "auto", "stable": True, "ceiling": 2.0}, ("rho",),
        formula="h_w → ρ·h_w, ρ = min(exp(sg[u_w − u_l]), C), u = h/n (ratio) or u = ā, b̄ (policy)",
        paper="Chen et al. 2026, AdaDPO (arXiv 2605.28440)",
        when="When rejected falls much faster than chosen rises.",
        dynamics="ρ multiplies the pull on chosen, so that the pulls on probabilities are equal (d_w/p_w = d_l/p_l) "
        "while ρ < C. A chosen response ahead of rejected is pulled up to C times harder; one that has fallen behind "
        "is pulled less.",
        notes="On objectives other than dpo the same principle is a reconstruction; if the loss averages per token, "
        "the balance holds for the pulls on the averages. For orpo, u is the log-odds.",
        fits=lambda objective: objective.name in _BALANCED, misfit=adadpo_misfit,
        changes=("chosen",), vanishing=lambda options: not options["stable"],
    ),
    Shaping(
        "pairwise-normalised", None, {"metric": "plain"}, ("normaliser_chosen", "normaliser_rejected"),
        formula="−∇ℓ = C·(g_w/‖g_w‖ − g_l/‖g_l‖), C = √(d_w d_l)",
        paper="Yuan et al. 2024, Gradient Entanglement §5.1 (arXiv 2410.13828)",
        when="When the two gradient norms differ a lot and both log-probabilities move in the same direction.",
        dynamics="With positive pulls, both conditions hold for every pair (Cauchy–Schwarz): to first order, a pair "
        "alone neither lowers its chosen response nor raises its rejected one under a plain gradient step; with "
        "metric=optimizer, under a step in the metric P of the optimizer's last step.",
        notes="C is the objective's own scalar where d_w = d_l; √(d_w d_l) elsewhere is a reconstruction. "
        "Each pull keeps its sign. A pair with a pull of 0 (a satisfied hinge) gets no update. "
        "Needs gradient norms: normalised_pulls. metric=optimizer is ours: d_w/d_l = ‖g_l‖_P/‖g_w‖_P with ‖g‖_P² = "
        "Σ_k P_k g_k², the geometric mean of the two norms stays the plain one, and the first step is plain. It needs "
        "an optimizer whose metric is known (adamw, rmsprop; under sgd P = 1, the plain form). Tried under AdamW on "
        "the built-in model (40 steps at 2e-4, 2 seeds; change of chosen over the run, nats): dpo −0.96 and −1.06, "
        "plain +0.58 and +0.54, metric=optimizer +0.53 and +0.50 (rejected −2.92, −2.82 and −3.17, −3.16); rc "
        "+0.55 and +0.52.",
        reweight=Reweighting(normalise, in_metric=in_metric),
        meets_conditions=lambda options: not in_metric(options),
    ),
    Shaping(
        "rc", None, {"per": "batch", "ema": 0.98}, ("normaliser_chosen", "normaliser_rejected"),
        formula="d_w → α·d_w, d_l → d_l/α, α = √(r*/r), r = d_w/d_l, r* = ‖g_l‖/‖g_w‖",
        paper="Chen et al. 2026, reward calibration (arXiv 2604.18239)",
        when="When chosen falls with rejected and the loss itself is to stay as it is.",
        dynamics="Moves d_w/d_l to the centre of the band in which both conditions hold; the product d_w d_l stays. "
        "per=batch moves all pairs by one factor, which puts a pair of average norms there; per=pair puts every pair "
        "with positive pulls there: the direction of pairwise-normalised, with C = √(d_w d_l‖g_w‖‖g_l‖).",
        notes="per=batch: log(r*/r) is averaged over the steps before with a decay of ema, so the first step is plain. "
        "The formula, the average of logarithms and its decay are those of the official code. Ours: r* from the mean "
        "norms of the pairs' gradients over all trained parameters (there: norms of the batch-mean gradients in the "
        "head or the last LoRA block); r and r* of the whole step (there: of each micro-batch); the average without "
        "the present step (there: with it); a step whose mean pulls are not positive is left out (there: clamped). "
        "per=pair is ours altogether: the pair's own norms in every step, the first included; a pair with a pull that "
        "is not positive keeps its pulls.",
        reweight=Reweighting(calibrate, observe, remember), meets_conditions=lambda options: options["per"] == "pair",
    ),
    Shaping(
        "token-mask", masked_terms,
        {"penalty": 1.0, "slope": 20.0, "slope_start": 1.0, "anneal": 0.5, "threshold": 0.0, "readout_lr": 0.05,
         "wait": 0.02, "floor": 0.02, "through_hidden": False},
        ("mask_chosen", "mask_rejected", "mask_spread", "mask_signal"),
        formula="h → Σ_t m^t·h^t, ℓ + η_s·sg[d·s]·(Σ m_w + Σ m_l), m = σ(k(u − r))",
        paper="Yuan et al. 2024, Gradient Entanglement §5.2 (arXiv 2410.13828)",
        when="When a few tokens decide the preference and the shared ones entangle the gradients.",
        dynamics="Tokens with a small mask drop out of both gradients; once the shared tokens are masked, ⟨g_w,g_l⟩ is "
        "that of the tokens that differ.",
        notes=_MASK_NOTES,
        fits=lambda objective: objective.needs_reference or not objective.likelihood,
        needs=("token_logps", "response_mask", "token_mask"), reference_needs=("ref_token_logps",),
        rows="masked_logps", module=make_token_mask, around=lambda options: options["through_hidden"],
        penalty=mask_penalty, module_rate=lambda options: float(options["readout_lr"]),
    ),
)  # fmt: skip

SHAPINGS: dict[str, Shaping] = {row.name: row for row in _ROWS}


def composes_with(shaping: str) -> tuple[str, ...]:
    """Names of the objectives the shaping composes with."""
    return tuple(row.name for row in OBJECTIVES.values() if shaping in shapings_of(row))


def shapings_of(objective: Objective) -> tuple[str, ...]:
    """Names of the shapings the objective composes with; none for a warm-up stage."""
    return tuple(row.name for row in _ROWS if not objective.stage and row.fits(objective))


def parse_shaping(text: str | ChosenShaping) -> ChosenShaping:
    """``"gate-seq:form=gradient,alpha=50"`` → the shaping with all its options."""
    if isinstance(text, ChosenShaping):
        return text
    name, given = parse(text)
    if name not in SHAPINGS:
        raise BadInput(unknown("shaping", name, SHAPINGS))
    row = SHAPINGS[name]
    return ChosenShaping(row, resolve(row.name, row.defaults, given))


def parse_shapings(
    shapings: Iterable[str | ChosenShaping], objective: Objective, hyper: Mapping[str, Value] | None = None
) -> tuple[ChosenShaping, ...]:
    """All of them, checked against the objective, its hyper-parameters and each other.

    Raises:
        BadInput: a shaping does not compose with the objective (the message names those it composes with), two fill
            the same columns, or an option needs what the objective does not have.
    """
    chosen = tuple(parse_shaping(s) for s in shapings)
    wrong = [c for one in chosen for c in _misfits(one, objective)]
    filled = [column for one in chosen for column in one.shaping.columns]
    twice = sorted({column for column in filled if filled.count(column) > 1})
    wrong += [f"two shapings fill {', '.join(twice)}: choose one of them"] if twice else []
    if (hyper or {}).get("nll"):
        wrong += [
            f"{one.name} trains other log-probabilities than the responses' own, which a likelihood term is about: "
            "leave nll off"
            for one in chosen
            if one.shaping.rows
        ]
    if wrong := [*wrong, *_conflicts(chosen)]:
        raise BadInput("; ".join(wrong))
    return chosen


def _conflicts(chosen: Iterable[ChosenShaping]) -> list[str]:
    """Why these shapings cannot be used together: a module is learned by a backward that reweighted updates lack."""
    learned = [one.name for one in chosen if one.shaping.module is not None]
    reweighted = [one.name for one in chosen if one.shaping.reweight is not None]
    return [
        f"{first} learns a module from the backward pass of the loss, which {second} updates do not have: choose one "
        "of them"
        for first in learned
        for second in reweighted
    ]


def _misfits(one: ChosenShaping, objective: Objective) -> list[str]:
    """Why the shaping does not fit the objective; empty where it does."""
    name = one.name
    if name not in shapings_of(objective):
        fits = ", ".join(composes_with(name))
        return [f"shaping {name} does not compose with objective {objective.name}; it does with: {fits}"]
    complaint = one.shaping.misfit(objective, one.options)
    return [complaint] if complaint else []
