"""The read-out of sparsity-regularised token masking (Yuan et al. 2024, §5.2); what it does to terms: masking.py.

``L`` positions, ``d`` hidden size, ``2B`` rows ``[chosen; rejected]``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
