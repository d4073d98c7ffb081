"""The optimizer's step as it was applied: one file per family, a table of them, and a reader that watches the steps."""

from dyn_probe.metric.applied import AppliedStep, Momentum, RankOne
from dyn_probe.metric.clip_factor import Factor, common_factor, gradient_slice
from dyn_probe.metric.optimizers import FAMILIES
from dyn_probe.metric.step_reader import ParameterStep, StepReader, coming_step, previous_metric
from dyn_probe.metric.storing import StoredAgreement, stored_agrees, unmoved_share

__all__ = [
    "FAMILIES",
    "AppliedStep",
    "Factor",
    "Momentum",
    "ParameterStep",
    "RankOne",
    "StepReader",
    "StoredAgreement",
    "coming_step",
    "common_factor",
    "gradient_slice",
    "previous_metric",
    "stored_agrees",
    "unmoved_share",
]
