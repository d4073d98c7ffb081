"""Objectives and shapings: what any preference method asks of a pair, as numbers.

``pair_loss`` gives per-pair losses, ``pulls`` the two scalars through which a pair's gradients enter the
update; OBJECTIVES and SHAPINGS are the tables of methods.
"""

from dyn_probe.objectives.describe import Method, describe
from dyn_probe.objectives.kl import kl_estimate, mismatched_rows
from dyn_probe.objectives.losses import OBJECTIVES, objective, parse_objective, resolve_hyper
from dyn_probe.objectives.normalise import NormalisedPulls, normalised_pulls, surrogate_loss
from dyn_probe.objectives.pulls import check_terms, pair_loss, pair_scores, pulls
from dyn_probe.objectives.scores import Score
from dyn_probe.objectives.shaping import SHAPINGS, composes_with, parse_shaping, parse_shapings
from dyn_probe.objectives.table import ChosenShaping, Objective, Shaping
from dyn_probe.objectives.terms import Terms
from dyn_probe.objectives.token_mask import TokenMask, masked_logps

__all__ = [
    "OBJECTIVES",
    "SHAPINGS",
    "ChosenShaping",
    "Method",
    "NormalisedPulls",
    "Objective",
    "Score",
    "Shaping",
    "Terms",
    "TokenMask",
    "check_terms",
    "composes_with",
    "describe",
    "kl_estimate",
    "masked_logps",
    "mismatched_rows",
    "normalised_pulls",
    "objective",
    "pair_loss",
    "pair_scores",
    "parse_objective",
    "parse_shaping",
    "parse_shapings",
    "pulls",
    "resolve_hyper",
    "surrogate_loss",
]
