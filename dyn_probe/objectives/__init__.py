"""Objectives and shapings: what any preference method asks of a pair, as numbers (docs/methods.md).

``pair_loss`` gives per-pair losses, ``pulls`` the two scalars through which a pair's gradients enter the
update; OBJECTIVES and SHAPINGS are the tables of methods. The tables are read without torch; what computes on
tensors loads it on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dyn_probe.objectives.describe import MethodText, describe
from dyn_probe.objectives.kl import kl_estimate, mismatched_rows
from dyn_probe.objectives.losses import OBJECTIVES, STAGES, SUPERVISED, objective, parse_objective, resolve_hyper
from dyn_probe.objectives.masking import masked_logps
from dyn_probe.objectives.normalise import NormalisedPulls, normalised_pulls, surrogate_loss
from dyn_probe.objectives.scores import Score
from dyn_probe.objectives.shaping import SHAPINGS, composes_with, parse_shaping, parse_shapings, shapings_of
from dyn_probe.objectives.table import CHANGES, ChosenShaping, Measured, Objective, Reweighted, Reweighting, Shaping

_WITH_TORCH = {
    "Terms": "pair_terms",
    "TokenMask": "token_mask",
    "check_terms": "evaluate",
    "pair_loss": "evaluate",
    "pair_scores": "evaluate",
    "pulls": "evaluate",
}
"""Name → its file, for the names that need torch."""

__all__ = [
    "CHANGES",
    "OBJECTIVES",
    "SHAPINGS",
    "STAGES",
    "SUPERVISED",
    "ChosenShaping",
    "Measured",
    "MethodText",
    "NormalisedPulls",
    "Objective",
    "Reweighted",
    "Reweighting",
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
    "shapings_of",
    "surrogate_loss",
]

if TYPE_CHECKING:
    from dyn_probe.objectives.evaluate import check_terms, pair_loss, pair_scores, pulls
    from dyn_probe.objectives.pair_terms import Terms
    from dyn_probe.objectives.token_mask import TokenMask


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
    globals()[name] = value
    return value
