"""The optimizer's step as it was applied: one file per family, a table of them, and a reader that watches the steps."""

from dyn_probe.metric.applied import AppliedStep, Momentum, RankOne
from dyn_probe.metric.clipping import Factor, common_factor, gradient_slice
from dyn_probe.metric.reading import ParameterStep, StepReader, coming_step, previous_metric
from dyn_probe.metric.storing import Agreement, stored_agrees, unmoved_share
from dyn_probe.metric.table import FAMILIES

__all__ = [
    "FAMILIES",
    "Agreement",
    "AppliedStep",
    "Factor",
    "Momentum",
    "ParameterStep",
    "RankOne",
    "StepReader",
    "coming_step",
    "common_factor",
    "gradient_slice",
    "previous_metric",
    "stored_agrees",
    "unmoved_share",
]
