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

    The columns are the mean masks, their spread in the pair, and what the penalty is measured in. ``mask_penalty``
    reads them, so they stay live.
    """
    said = terms.need("response_mask").bool()
    mask = terms.need("token_mask").where(said, 0.0)
    n = said.sum(1)
    means = (mask.sum(1) / n).chunk(2)
    known = terms.masked_logps
    masked = masked_logps(mask, terms.need("token_logps")) if known is None else known
    a, b = masked.chunk(2)
    r_w, r_l = terms.r_w, terms.r_l
    if objective.needs_reference:
        r_w, r_l = (mask * terms.need("ref_token_logps").detach()).sum(1).chunk(2)
    n_w, n_l = n.chunk(2)
    still = mask.detach()
    mean = (still.sum(1).view(2, -1).sum(0) / (n_w + n_l)).repeat(2)[:, None]
    spread = (((still - mean) ** 2).where(said, 0.0).sum(1).view(2, -1).sum(0) / (n_w + n_l)).sqrt()
    columns = {
        "mask_chosen": means[0], "mask_rejected": means[1], "mask_spread": spread,
        "mask_signal": mask_signal(objective, terms),
    }  # fmt: skip
    return replace(terms, a=a, b=b, r_w=r_w, r_l=r_l), columns


def mask_signal(objective: Objective, terms: Terms) -> Tensor:
    """``[B]`` what a token adds to the margin on average (nats per token, detached): the log-ratio margin of the whole
    responses over their ``n_w + n_l`` tokens, as a mean over the batch and at least 0; without a reference that of the
    log-probabilities."""
    margin = terms.h_w - terms.h_l if objective.needs_reference else terms.a - terms.b
    signal = (margin / (terms.n_w + terms.n_l)).detach().mean().clamp(min=0.0)
    return signal.expand(len(margin))


def masked_logps(mask: Tensor, token_logps: Tensor) -> Tensor:
    """``[2B]`` Σ_t m^t·log π^t of ``mask`` and ``token_logps`` ``[2B, L]``, both 0 outside the response."""
    return (mask * token_logps).sum(1)


def mask_penalty(terms: Terms, columns: Columns, options: Options, pull: Tensor) -> Tensor:
    """``[B]`` η_s·sg[d·s]·(Σ_t m_w^t + Σ_t m_l^t): the printed l1 norm, in units of what the loss gives an average
    token (a reconstruction). ``d`` is the mean size of the two pulls and ``s`` ``mask_signal``, so that with η_s = 1 a
    token stays open if its log-ratio adds more to the margin than the average token's does. While ``s`` is at most
    ``wait``, or the pair's mean mask at most ``floor``, there is no penalty.
    """
    n_w, n_l = terms.n_w, terms.n_l
    total = n_w * columns["mask_chosen"] + n_l * columns["mask_rejected"]
    signal = columns["mask_signal"]
    waits = (signal <= options["wait"]) | (total.detach() <= options["floor"] * (n_w + n_l))
    return (options["penalty"] * pull * signal).masked_fill(waits, 0.0).detach() * total


def make_token_mask(hidden_size: int, options: Options) -> nn.Module:
    """The read-out with these options, to be learned together with the policy."""
    from dyn_probe.objectives.token_mask import TokenMask

    names = ("slope", "threshold", "through_hidden", "slope_start", "anneal")
    return TokenMask(hidden_size, **{name: options[name] for name in names})
