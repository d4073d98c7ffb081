"""The read-out of sparsity-regularised token masking (Yuan et al. 2024, §5.2); what it does to terms: masking.py.

``L`` positions, ``d`` hidden size, ``2B`` rows ``[chosen; rejected]``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenMask(nn.Module):
    """m = σ(k(u − r)), u a learnable linear read-out of the hidden state at each token, divided by the state's l1 norm.

    The read-out starts at 0, so every token starts with the same mask σ(−kr). Since the state is divided by its norm, a
    step of Adam moves u by at most its learning rate, whatever the model's width; and since it has no bias, which would
    open or close all tokens at once, what it learns is which of them matter.

    Unless ``through_hidden``, the mask sends no gradient into the hidden state: the policy moves through
    log-probabilities only.

    Args:
        hidden_size: ``d`` of the model.
        slope, threshold: k, once it is annealed, and r.
        slope_start, anneal: k at the start of the training, and the share of the training in which it rises to
            ``slope``, by the same factor in every step.
    """

    def __init__(
        self,
        hidden_size: int,
        slope: float = 20.0,
        threshold: float = 0.0,
        through_hidden: bool = False,
        slope_start: float = 1.0,
        anneal: float = 0.5,
    ) -> None:
        super().__init__()
        self.readout = nn.Linear(hidden_size, 1, bias=False)
        nn.init.zeros_(self.readout.weight)
        self.slope, self.threshold, self.through_hidden = slope, threshold, through_hidden
        self.slope_start, self.anneal = slope_start, anneal

    def slope_at(self, progress: float) -> float:
        """k at that share of the training."""
        done = min(1.0, progress / self.anneal) if self.anneal else 1.0
        return float(self.slope_start ** (1 - done) * self.slope**done)

    def forward(self, hidden: Tensor, progress: float = 1.0) -> Tensor:
        """``[2B, L]`` masks of ``hidden`` ``[2B, L, d]``; column ``t`` reads the state at token ``t``.

        Args:
            progress: share of the training done, 0 to 1.
        """
        state = (hidden if self.through_hidden else hidden.detach()).to(self.readout.weight.dtype)
        size = state.detach().abs().sum(-1, keepdim=True).clamp(min=torch.finfo(state.dtype).tiny)
        u = self.readout(state / size).squeeze(-1)
        return torch.sigmoid(self.slope_at(progress) * (u - self.threshold))
