"""The losses, one function per row of docs/methods.md: ``loss(terms, hyper) -> ℓ [B]``, minimised.

Letters as in docs/notation.md. Every loss passes the two contributions of its pair term through ``t.chosen`` and
``t.rejected``, where shapings act; whatever else it reads (a likelihood term, a penalty) stays unshaped. The functions
are written with methods of tensors, so that the table of objectives can be read without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from dyn_probe.objectives.pair_terms import Terms

Hyper = Mapping[str, float | bool]


def log_sigmoid(x: Tensor) -> Tensor:
    """log σ(x), without overflow."""
    from torch.nn.functional import logsigmoid

    return logsigmoid(x)


def dpo(t: Terms, p: Hyper) -> Tensor:
    """−log σ(β(h_w − h_l)); with label smoothing ε: (1−ε)·that + ε·(the same with the sides exchanged)."""
    margin = p["beta"] * (t.chosen(t.h_w) - t.rejected(t.h_l))
    return -(1 - p["label_smoothing"]) * log_sigmoid(margin) - p["label_smoothing"] * log_sigmoid(-margin)


def rdpo(t: Terms, p: Hyper) -> Tensor:
    """−log σ(β(h_w − h_l) + α(n_w − n_l))."""
    margin = p["beta"] * (t.chosen(t.h_w) - t.rejected(t.h_l))
    return -log_sigmoid(margin + p["alpha"] * (t.n_w - t.n_l))


def simpo(t: Terms, p: Hyper) -> Tensor:
    """−log σ(β(ā − b̄) − γ)."""
    return -log_sigmoid(p["beta"] * (t.chosen(t.mean_w) - t.rejected(t.mean_l)) - p["gamma"])


def ipo(t: Terms, p: Hyper) -> Tensor:
    """(h_w/n_w − h_l/n_l − 1/(2β))²; with ``average`` false, without the division by length."""
    h_w, h_l = (t.h_w / t.n_w, t.h_l / t.n_l) if p["average"] else (t.h_w, t.h_l)
    return (t.chosen(h_w) - t.rejected(h_l) - 1 / (2 * p["beta"])) ** 2


def rrhf(t: Terms, p: Hyper) -> Tensor:
    """max(0, b̄ − ā) − λa."""
    return (t.rejected(t.mean_l) - t.chosen(t.mean_w)).relu() - p["lambda"] * t.a


def slic_hf(t: Terms, p: Hyper) -> Tensor:
    """max(0, δ − a + b) − λa."""
    return (p["delta"] - t.chosen(t.a) + t.rejected(t.b)).relu() - p["lambda"] * t.a


def cpo(t: Terms, p: Hyper) -> Tensor:
    """−log σ(β(a − b)) − λa; with ``mean_nll`` true, −λā."""
    likelihood = t.mean_w if p["mean_nll"] else t.a
    return -log_sigmoid(p["beta"] * (t.chosen(t.a) - t.rejected(t.b))) - p["lambda"] * likelihood


def dpop(t: Terms, p: Hyper) -> Tensor:
    """−log σ(β(h_w − h_l − λ max(0, −h_w)))."""
    margin = t.chosen(t.h_w) - t.rejected(t.h_l) - p["lambda"] * (-t.h_w).relu()
    return -log_sigmoid(p["beta"] * margin)


def kto(t: Terms, p: Hyper) -> Tensor:
    """λ_w(1 − σ(βh_w − z)) + λ_l(1 − σ(z − βh_l)), z = β·max(0, KL), detached."""
    z = p["beta"] * t.need("kl").detach().clamp(min=0)
    h_w, h_l = t.chosen(t.h_w), t.rejected(t.h_l)
    # 1 − σ(x) = σ(−x), without the cancellation at σ → 1
    return p["lambda_w"] * (z - p["beta"] * h_w).sigmoid() + p["lambda_l"] * (p["beta"] * h_l - z).sigmoid()


def sppo(t: Terms, p: Hyper) -> Tensor:
    """(h_w − 1/(2β))² + (h_l + 1/(2β))²; ``soft``: targets (P − ½)/β from win probabilities P."""
    h_w, h_l = t.chosen(t.h_w), t.rejected(t.h_l)
    if p["soft"]:
        return (h_w - (t.need("win_w") - 0.5) / p["beta"]) ** 2 + (h_l - (t.need("win_l") - 0.5) / p["beta"]) ** 2
    return (h_w - 1 / (2 * p["beta"])) ** 2 + (h_l + 1 / (2 * p["beta"])) ** 2


def orpo(t: Terms, p: Hyper) -> Tensor:
    """−ā − λ log σ(log-odds(e^ā) − log-odds(e^b̄))."""
    log_odds_ratio = t.chosen(log_odds(t.mean_w)) - t.rejected(log_odds(t.mean_l))
    return -t.mean_w - p["lambda"] * log_sigmoid(log_odds_ratio)


def log_odds(mean_logp: Tensor) -> Tensor:
    """log(p/(1 − p)) of p = e^x for ``mean_logp`` x ≤ 0, finite with a finite gradient also at p → 1.

    ``1 − e^x`` is taken as ``−expm1(x)``, which keeps its digits near 0; x is held at or below −ε of its
    dtype.
    """
    from torch import finfo

    x = mean_logp.clamp(max=-finfo(mean_logp.dtype).eps)
    return x - (-x.expm1()).log()


def both_log_odds(t: Terms) -> tuple[Tensor, Tensor]:
    """Log-odds of both responses: what the pair term of orpo compares."""
    return log_odds(t.mean_w), log_odds(t.mean_l)


def cal_dpo(t: Terms, p: Hyper) -> Tensor:
    """−log σ(h_w − h_l) + κ[(h_w − 1/(2β))² + (h_l + 1/(2β))²]."""
    h_w, h_l = t.chosen(t.h_w), t.rejected(t.h_l)
    calibration = (h_w - 1 / (2 * p["beta"])) ** 2 + (h_l + 1 / (2 * p["beta"])) ** 2
    return -log_sigmoid(h_w - h_l) + p["kappa"] * calibration


def dpo_shift(t: Terms, p: Hyper) -> Tensor:
    """−log σ(β(h_w − λh_l)), λ by :func:`shift`."""
    return -log_sigmoid(p["beta"] * (t.chosen(t.h_w) - shift(t, p) * t.rejected(t.h_l)))


def shift(t: Terms, p: Hyper) -> float:
    """λ of DPO-Shift; with ``schedule`` it runs linearly from its value to 1 with training's progress (0 to 1)."""
    least = float(p["lambda"])
    return least + (1 - least) * float(t.need("progress")) if p["schedule"] else least


def likelihood(t: Terms, p: Mapping[str, Any]) -> Tensor:
    """``[B]`` negative log-likelihood of chosen, by ``nll_mean``: −a for ``sum``, −ā for ``pair``.

    For ``batch`` −a·B/Σn_w, whose mean over the batch is −Σa/Σn_w, the mean over all its chosen tokens. The batch is
    that of the whole optimizer step where ``batch_tokens`` says how many tokens a response has there.
    """
    if p["nll_mean"] == "sum":
        return -t.a
    if p["nll_mean"] == "pair":
        return -t.mean_w
    return -t.a / (t.n_w.mean() if t.batch_tokens is None else t.batch_tokens)


def sft(t: Terms, p: Hyper) -> Tensor:
    """−ā: the chosen response alone."""
    return -t.mean_w


def extended_sft(t: Terms, p: Hyper) -> Tensor:
    """−ā − b̄: both responses, as two training examples."""
    return -t.mean_w - t.mean_l
