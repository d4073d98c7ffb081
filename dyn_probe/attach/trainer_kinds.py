"""The preference trainers of TRL that are recorded, and what the recorder must know of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dyn_probe.attach.collated import TrainerBatch, joined_sides, one_tensor
from dyn_probe.attach.paired_rows import labelled_rows
from dyn_probe.objectives.scores import LOG_ODDS, LOG_PROB, LOG_RATIO, MEAN_LOG_PROB, MEAN_LOG_RATIO, Score

OBJECTIVES: Mapping[str, str] = {"sigmoid": "dpo", "ipo": "ipo", "sppo_hard": "sppo"}
"""Loss types of ``DPOTrainer`` that are the same as an objective of ours, where they stand alone."""
PLAIN_DIVERGENCE = (None, "reverse_kl")
"""Values of ``f_divergence_type`` with which ``DPOTrainer`` compares plain log-ratios."""
PER_TOKEN = ("ipo", "sigmoid_norm")
"""Loss types of ``DPOTrainer`` that compare log-ratios per token."""
MEANS = ("ipo", "simpo")
"""Loss types of ``CPOTrainer`` that compare means per token."""
FUSED = (1, 15)
"""From this version on ``DPOTrainer`` computes every term from the fused head's token log-probabilities."""
Args = Any


@dataclass(frozen=True)
class TrainerKind:
    """One class of trainers.

    Args:
        batch: what a batch holds, as the trainer's collator made it.
        terms: term of the loss that is a mean over the pairs → its weight.
        likelihood: weight of a cross-entropy term that is not one of them.
        beside: whether a cross-entropy is computed from logits, beside the token log-probabilities.
        name: what it minimises, as one would write it.
        score: what its loss compares.
        reference: whether there is a reference policy.
        logs_means: whether its ``logps/…`` and ``rewards/…`` are means per token.
        logs_rewards: whether its ``rewards/…`` are β times what its log-probabilities say.
        single: whether it trains on single responses, of which two to one prompt are a pair.
        vanishing: whether a pull can be 0, or differ between the tokens of a response.
    """

    batch: Callable[[Mapping[str, Any]], TrainerBatch]
    terms: Callable[[Args], dict[str, float]]
    likelihood: Callable[[Args], float]
    beside: Callable[[Args], bool]
    name: Callable[[Args], str]
    score: Callable[[Args], Score]
    reference: bool
    logs_means: Callable[[Args], bool]
    logs_rewards: Callable[[Args], bool]
    single: bool = False
    vanishing: Callable[[Args], bool] = lambda args: True


def dpo_terms(args: Args) -> dict[str, float]:
    """Loss type → its weight."""
    types = args.loss_type if isinstance(args.loss_type, list) else [args.loss_type]
    weights = getattr(args, "loss_weights", None) or [1.0] * len(types)
    return dict(zip(types, weights, strict=True))


def trl_version() -> tuple[int, ...]:
    """The first two numbers of the installed TRL's version."""
    import trl

    return tuple(int(number) for number in re.findall(r"\d+", trl.__version__)[:2])


def sft_from_logits(args: Args) -> bool:
    """Whether ``DPOTrainer`` has a term ``sft`` that it computes from logits."""
    return "sft" in dpo_terms(args) and trl_version() < FUSED


def dpo_name(args: Args) -> str:
    """As one would write the loss: ``sigmoid + 0.5 sft``, ``sigmoid (js_divergence)``; the name of an objective of ours
    only where nothing changes its pulls."""
    terms, changes = dpo_terms(args), _changes_of_dpo(args)
    if list(terms.values()) == [1.0] and not changes and (name := OBJECTIVES.get(next(iter(terms)))):
        return name
    written = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in terms.items())
    return f"{written} ({', '.join(changes)})" if changes else written


def _changes_of_dpo(args: Args) -> list[str]:
    """Settings of ``DPOTrainer`` under which a loss type has other pulls than its own."""
    divergence = getattr(args, "f_divergence_type", None)
    divergence = getattr(divergence, "value", divergence)
    long = getattr(args, "ld_alpha", None)
    return [
        *([str(divergence)] if divergence not in PLAIN_DIVERGENCE else []),
        *([f"ld_alpha={long:g}"] if long is not None else []),
        *(["use_weighting"] if getattr(args, "use_weighting", False) else []),
    ]


def dpo_vanishes(args: Args) -> bool:
    """False of the plain sigmoid loss, alone or with a term ``sft``, which pulls chosen only further up."""
    terms = dpo_terms(args)
    types = args.loss_type if isinstance(args.loss_type, list) else [args.loss_type]
    known = terms.keys() <= {"sigmoid", "sft"} and len(types) == len(terms)
    steady = known and terms.get("sigmoid", 0) > 0 and min(terms.values()) >= 0 and args.beta > 0
    return not steady or bool(_changes_of_dpo(args) or getattr(args, "label_smoothing", 0))


def cpo_name(args: Args) -> str:
    """CPO's own loss, SimPO, or its parts."""
    if args.loss_type == "sigmoid" and args.cpo_alpha == 1:
        return "cpo"
    return args.loss_type + (f" + {args.cpo_alpha:g} nll" if args.cpo_alpha else "")


KINDS: Mapping[str, TrainerKind] = {
    "DPOTrainer": TrainerKind(
        one_tensor, dpo_terms, lambda args: 0.0, sft_from_logits, dpo_name,
        lambda args: MEAN_LOG_RATIO if dpo_terms(args).keys() <= set(PER_TOKEN) else LOG_RATIO,
        reference=True, logs_means=lambda args: False, logs_rewards=lambda args: True, vanishing=dpo_vanishes,
    ),
    "CPOTrainer": TrainerKind(
        joined_sides, lambda args: {args.loss_type: 1.0},
        lambda args: args.cpo_alpha, lambda args: bool(args.cpo_alpha), cpo_name,
        lambda args: MEAN_LOG_PROB if args.loss_type in MEANS else LOG_PROB,
        reference=False, logs_means=lambda args: args.loss_type in MEANS, logs_rewards=lambda args: not args.alpha,
    ),
    "ORPOTrainer": TrainerKind(
        joined_sides, lambda args: {"log-odds": -1.0}, lambda args: 1.0, lambda args: True, lambda args: "orpo",
        lambda args: LOG_ODDS,
        reference=False, logs_means=lambda args: True, logs_rewards=lambda args: True,
    ),
    "KTOTrainer": TrainerKind(
        labelled_rows, lambda args: {args.loss_type: 1.0}, lambda args: 0.0, lambda args: False,
        lambda args: f"{args.loss_type}, a mean over responses", lambda args: LOG_RATIO,
        reference=True, logs_means=lambda args: False, logs_rewards=lambda args: True, single=True,
    ),
}  # fmt: skip
"""Class of TRL → what is known of it; classes made from it are recorded too."""

SINGLE = (
    "trains on single responses, and no batch holds both of a pair; train with DPOTrainer (loss_type='bco_pair' or "
    "'apo_zero'), or measure the pairs at its checkpoints: dyn-probe scan CHECKPOINT… --data pairs.jsonl"
)
UNPAIRED: Mapping[str, str] = {
    "BCOTrainer": SINGLE,
    "TPOTrainer": "trains on three responses together; measure two of them at its checkpoints: dyn-probe scan",
    "OnlineDPOTrainer": "makes its pairs while it trains; record a DPOTrainer on pairs that are saved",
}
"""Class of TRL that trains on preferences and is not recorded → why, and what to do."""


def kind_of(trainer: Any) -> TrainerKind | None:
    """What is known of the trainer's class; None where it is none of ``KINDS``."""
    return next((KINDS[name] for name in _names(trainer) if name in KINDS), None)


LOSS = ("compute_loss", "_compute_loss", "get_batch_loss_metrics", "dpo_loss")
"""Methods in which TRL's trainers compute their loss."""


def vanishes(trainer: Any, kind: TrainerKind) -> bool:
    """Whether a pull of this trainer can be 0, or differ between the tokens of a response: so it is taken to be where a
    class made from TRL's has a loss of its own."""
    own = [one for one in type(trainer).__mro__ if not one.__module__.startswith(("trl.", "transformers."))]
    return kind.vanishing(trainer.args) or any(name in vars(one) for one in own for name in LOSS)


def unpaired(trainer: Any) -> str:
    """Why a preference trainer of TRL is not recorded; "" where that is not so."""
    return next((UNPAIRED[name] for name in _names(trainer) if name in UNPAIRED), "")


def is_preference_trainer(trainer: Any) -> bool:
    """Whether it is one of TRL's preference trainers, or made from one."""
    return kind_of(trainer) is not None or bool(unpaired(trainer))


def _names(trainer: Any) -> list[str]:
    """TRL's classes that it is made from, the nearest first."""
    return [kind.__name__ for kind in type(trainer).__mro__ if kind.__module__.startswith("trl.")]
