"""What one position's distribution says about its target token, and the sums and means over a response.

Letters: ``N`` positions, ``V`` vocabulary, ``π_t`` the model's distribution at a position, ``y_t`` the
target. Definitions: Ren & Sutherland 2024 (arXiv 2407.10490, §4) and its published code, with two
differences. Where the code takes ``log(1 − max π)`` and gets NaN or −inf, the sum over all other tokens
is taken in log space here. And ``a_norm`` takes the mean over positions of ``‖π_t‖²``, as the norm of
``A`` asks, where the code squares the mean of ``‖π_t‖``: that number is ``sqrt(V·prob_norm² + V − 2)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

FLOOR = -745.0
"""Least value of log(1 − max π), the log of the smallest positive float64: no other token has any mass."""

METRICS = (
    "logp",
    "argmax_logp",
    "not_argmax_logp",
    "entropy",
    "rank",
    "top1",
    "residual",
    "missing_mass",
    "rival_mass",
    "prob_norm",
    "prob_norm_squared",
)
"""What :func:`token_metrics` gives per position, in this order."""


def token_metrics(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Per-position numbers, each ``[N]``, in float32 or better; all NaN where the logits are not finite.

    Args:
        logits: ``[N, V]``; half precision is measured in float32. −inf (a forbidden token) is allowed.
        targets: ``[N]`` token ids.
    """
    z = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    y = targets[:, None]
    target, (top, arg) = z.gather(1, y), z.max(1, keepdim=True)
    rest, rest_top = _rest(z, y), _rest(z, arg)
    above, level = (z > target).sum(1), (z == target).sum(1)
    missing = torch.sigmoid(rest - target)  # 1 − π(y) without cancellation
    p = torch.softmax(z, 1)
    entropy = torch.special.entr(p).sum(1)
    others = p.scatter_(1, y, 0.0)
    rival, square = others.amax(1), others.square().sum(1)
    target_p, missing = torch.sigmoid(target - rest)[:, 0], missing[:, 0]
    values = {
        "logp": torch.nn.functional.logsigmoid(target - rest)[:, 0],
        "argmax_logp": torch.nn.functional.logsigmoid(top - rest_top)[:, 0],
        "not_argmax_logp": torch.nn.functional.logsigmoid(rest_top - top)[:, 0].clamp(min=FLOOR),
        "entropy": entropy,
        "rank": above + (level - 1) / 2,
        "top1": (above == 0) / level,
        "residual": (square + missing.square()).sqrt(),
        "missing_mass": missing,
        "rival_mass": rival,
        "prob_norm": (square + target_p.square()).sqrt(),
        "prob_norm_squared": square + target_p.square(),
    }
    unusable = ~torch.isfinite(top[:, 0])
    return {name: values[name].to(z.dtype).masked_fill(unusable, math.nan) for name in METRICS}


def _rest(z: Tensor, index: Tensor) -> Tensor:
    """``[N, 1]`` log of the summed exponentials of all logits but the one at ``index``."""
    return z.scatter(1, index, -math.inf).logsumexp(1, keepdim=True)


def summarise(tokens: int, sums: Mapping[str, float], vocabulary: int) -> dict[str, float | int]:
    """One response's columns of the mass table, from sums of :func:`token_metrics` over its ``tokens``."""
    means = {name: sums[name] / tokens for name in METRICS}
    return {
        "tokens": tokens,
        "logp": sums["logp"],
        "logp_token": means["logp"],
        "argmax_logp": sums["argmax_logp"],
        "not_argmax_logp": sums["not_argmax_logp"],
        **{name: means[name] for name in ("entropy", "rank", "top1", "residual", "missing_mass")},
        "rival_mass": means["rival_mass"],
        "prob_norm": means["prob_norm"],
        # ‖A‖_F² = V‖π‖² + V − 2 with A = I − 1πᵀ; the mean over positions is taken of ‖π_t‖²
        "a_norm": math.sqrt(vocabulary * means["prob_norm_squared"] + vocabulary - 2),
    }
