"""Sparsity-regularised token masking (Yuan et al. 2024, §5.2): masked log-ratios and the penalty. No torch to read it.

``m`` mask ``[2B, L]``, ``2B`` rows ``[chosen; rejected]``, ``L`` positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dyn_probe.objectives.pair_terms import Terms
    from dyn_probe.objectives.table import Columns, Objective, Options


def masked_terms(objective: Objective, terms: Terms, options: Options) -> tuple[Terms, Columns]:
    """The terms with a, b, r_w, r_l replaced by masked sums Σ_t m^t·(…)^t over response tokens.

    The columns are the mean masks; ``mask_penalty`` reads them, so they stay live.
    """
    said = terms.need("response_mask").bool()
    mask = terms.need("token_mask").where(said, 0.0)
    means = (mask.sum(1) / said.sum(1)).chunk(2)
    known = terms.masked_logps
    a, b = (masked_logps(mask, terms.need("token_logps")) if known is None else known).chunk(2)
    r_w, r_l = (mask * terms.need("ref_token_logps").detach()).sum(1).chunk(2)
    columns = {"mask_chosen": means[0], "mask_rejected": means[1]}
    return replace(terms, a=a, b=b, r_w=r_w, r_l=r_l), columns


def masked_logps(mask: Tensor, token_logps: Tensor) -> Tensor:
    """``[2B]`` Σ_t m^t·log π^t of ``mask`` and ``token_logps`` ``[2B, L]``, both 0 outside the response."""
    return (mask * token_logps).sum(1)


def mask_penalty(columns: Columns, options: Options) -> Tensor:
    """``[B]`` η_s(mean m_w + mean m_l): means in place of the printed l1 norms (a reconstruction), free of length."""
    return (columns["mask_chosen"] + columns["mask_rejected"]) * options["penalty"]


def make_token_mask(hidden_size: int, options: Options) -> nn.Module:
    """The read-out with these options, to be learned together with the policy."""
    from dyn_probe.objectives.token_mask import TokenMask

    return TokenMask(hidden_size, options["slope"], options["threshold"], options["through_hidden"])
