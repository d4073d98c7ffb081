"""Norms in the metric of the optimizer's last step, for updates that are normalised in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.engine.held import Held
from dyn_probe.engine.uses import trained_parameters
from dyn_probe.metric.applied import RankOne
from dyn_probe.metric.step_reader import previous_metric


def squares_in_last_metric(held: Held, optimizer: Any, model: nn.Module) -> Tensor | None:
    """``[2B]`` (float64) ``Σ_k P_k g_ik²`` of every row; None where P = 1 everywhere, and before the first step.

    Parameters that the optimizer has not moved yet are left out beside others that it has: they have no P.

    Raises:
        UnsupportedUse: the optimizer's step cannot be taken apart, so that its metric is not known.
    """
    pairs, total = held.rows // 2, None
    for name, parameter in trained_parameters(model).items():
        metric = previous_metric(optimizer, parameter)
        if metric is None:
            continue
        dense = metric.dense() if isinstance(metric, RankOne) else metric
        squares = held.gram(name, pairs, dense).diagonal(dim1=1, dim2=2).T.flatten()
        total = squares if total is None else total + squares
    return None if total is None else torch.clamp(total, min=0.0)
