"""Reward calibration (Chen et al. 2026, arXiv 2604.18239): pulls whose ratio stands in the middle of the band.

For ⟨g_w,g_l⟩ > 0 both conditions hold where log(d_w/d_l) lies within log(‖g_l‖/‖g_w‖) ± |log cos|. The calibration
moves r = d_w/d_l to the centre r* = ‖g_l‖/‖g_w‖ of that band: d_w is multiplied by α = √(r*/r) and d_l by 1/α, so that
d_w d_l stays. The loss itself is not touched. No torch to read the tables.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dyn_probe.objectives.table import Measured, Memory, Options, Reweighted

if TYPE_CHECKING:
    from torch import Tensor

DISTANCE = "log_distance"
"""What is kept from step to step: the moving average of log(r*/r)."""


def calibrate(measured: Measured, options: Options, memory: Memory) -> Reweighted:
    """The shaping: d_w·α and d_l/α, with one α for the batch or one for each pair.

    ``per=batch``: α = exp(m/2), m the moving average of log(r*/r) over the steps before (``remember``); before there is
    one, α = 1. ``per=pair``: α of the pair's own pulls and norms, 1 where one of them is not above 0.
    """
    if options["per"] == "pair":
        distance = _distance(measured)
        usable = (measured.d_w > 0) & (measured.d_l > 0) & (measured.norm_w > 0) & (measured.norm_l > 0)
        alpha = (distance / 2).exp().where(usable, 1.0)
    else:
        alpha = measured.d_w.new_full(measured.d_w.shape, math.exp(memory.get(DISTANCE, 0.0) / 2))
    columns = {"normaliser_chosen": alpha, "normaliser_rejected": 1 / alpha}
    return Reweighted(measured.d_w * alpha, measured.d_l / alpha, columns)


def _distance(measured: Measured) -> Tensor:
    """log(r*/r)."""
    return measured.norm_l.log() - measured.norm_w.log() - measured.d_w.log() + measured.d_l.log()


def observe(measured: Measured) -> Tensor:
    """``[4]`` sums over the pairs: d_w, d_l, ‖g_w‖, ‖g_l‖."""
    sums = measured.d_w.new_zeros(4).double()
    for place, values in enumerate((measured.d_w, measured.d_l, measured.norm_w, measured.norm_l)):
        sums[place] = values.double().sum()
    return sums


def remember(sums: Tensor, options: Options, memory: Memory) -> Memory:
    """The moving average with this step's log(r*/r) in it, r and r* from the means over all its pairs.

    The first step begins the average. A step in which a mean is not above 0 (a loss past its target) is left out.
    """
    means = sums.tolist()
    if not all(0 < value < math.inf for value in means):
        return memory
    d_w, d_l, norm_w, norm_l = (math.log(value) for value in means)
    now, decay = norm_l - norm_w - d_w + d_l, options["ema"]
    before = memory.get(DISTANCE, now)
    return {DISTANCE: decay * before + (1 - decay) * now}
