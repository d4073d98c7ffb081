"""Sparsity-regularised token masking (Yuan et al. 2024, §5.2): the mask's read-out, and masked log-ratios.

``m`` mask [2B, L], ``R = 2B`` rows ``[chosen; rejected]``, ``L`` positions, ``d`` hidden size.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from dyn_probe.objectives.table import Columns, Objective, Options
from dyn_probe.objectives.terms import Terms


class TokenMask(nn.Module):
    """m = σ(k(u − r)), u a learnable linear read-out of the hidden state at each token.

    The read-out starts at 0, so every token starts with the same mask σ(−kr). Unless ``through_hidden``, the
    mask sends no gradient into the hidden state: the policy moves through log-probabilities only.

    Args:
        hidden_size: ``d`` of the model.
        slope, threshold: k and r.
    """

    def __init__(
        self, hidden_size: int, slope: float = 1.0, threshold: float = 0.0, through_hidden: bool = False
    ) -> None:
        super().__init__()
        self.readout = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)
        self.slope, self.threshold, self.through_hidden = slope, threshold, through_hidden

    def forward(self, hidden: Tensor) -> Tensor:
        """``[2B, L]`` masks of ``hidden`` ``[2B, L, d]``; column ``t`` reads the state at token ``t``."""
        state = hidden if self.through_hidden else hidden.detach()
        u = self.readout(state.to(self.readout.weight.dtype)).squeeze(-1)
        return torch.sigmoid(self.slope * (u - self.threshold))


def masked_terms(objective: Objective, terms: Terms, options: Options) -> tuple[Terms, Columns]:
    """The terms with a, b, r_w, r_l replaced by masked sums Σ_t m^t·(…)^t over response tokens.

    The columns are the mean masks; ``mask_penalty`` reads them, so they stay live.
    """
    said = terms.need("response_mask").bool()
    mask = torch.where(said, terms.need("token_mask"), 0.0)
    means = (mask.sum(1) / said.sum(1)).chunk(2)
    known = terms.masked_logps
    a, b = (masked_logps(mask, terms.need("token_logps")) if known is None else known).chunk(2)
    r_w, r_l = (mask * terms.need("ref_token_logps").detach()).sum(1).chunk(2)
    columns = {"mask_chosen": means[0], "mask_rejected": means[1]}
    return replace(terms, a=a, b=b, r_w=r_w, r_l=r_l), columns


def masked_logps(mask: Tensor, token_logps: Tensor) -> Tensor:
    """``[2B]`` Σ_t m^t·log π^t of ``mask`` and ``token_logps`` ``[2B, L]``, both 0 outside the response."""
    return (mask * token_logps).sum(1)


def mask_penalty(columns: Columns, penalty: float) -> Tensor:
    """``[B]`` η_s(mean m_w + mean m_l): means in place of the printed l1 norms, free of length (R)."""
    return penalty * (columns["mask_chosen"] + columns["mask_rejected"])
