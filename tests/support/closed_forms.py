"""Closed forms of every objective and shaping, in numpy: the independent twins that each row of the tables owes.

``CLOSED`` has the pulls of an objective, ``SCORES`` what it compares of a response, ``SHAPED`` the pulls of DPO under a
shaping. A new row of OBJECTIVES owes a line in the first two, a new row of SHAPINGS one in the last.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from dyn_probe.objectives import Terms

Closed = Callable[[Any, dict[str, Any]], tuple[Any, Any]]


def sigmoid(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(x / 2))


def dpo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    x = p["beta"] * (t.hw - t.hl)
    pull = p["beta"] * (sigmoid(-x) - p["label_smoothing"])
    return pull, pull


def rdpo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    pull = p["beta"] * sigmoid(-p["beta"] * (t.hw - t.hl) - p["alpha"] * (t.nw - t.nl))
    return pull, pull


def simpo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    pull = p["beta"] * sigmoid(p["gamma"] - p["beta"] * (t.a / t.nw - t.b / t.nl))
    return pull / t.nw, pull / t.nl


def ipo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    nw, nl = (t.nw, t.nl) if p["average"] else (1, 1)
    short = 1 / p["beta"] - 2 * (t.hw / nw - t.hl / nl)
    return short / nw, short / nl


def rrhf(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    misordered = (t.b / t.nl > t.a / t.nw).astype(float)
    return p["lambda"] + misordered / t.nw, misordered / t.nl


def slic_hf(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    active = (p["delta"] - t.a + t.b > 0).astype(float)
    return p["lambda"] + active, active


def cpo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    pull = p["beta"] * sigmoid(p["beta"] * (t.b - t.a))
    return pull + p["lambda"] / (t.nw if p["mean_nll"] else 1), pull


def dpop(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    lost = np.maximum(0, -t.hw)
    pull = p["beta"] * sigmoid(-p["beta"] * (t.hw - t.hl - p["lambda"] * lost))
    return pull * (1 + p["lambda"] * (t.hw < 0)), pull


def kto(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    z = p["beta"] * np.maximum(0, t.kl)
    up, down = sigmoid(p["beta"] * t.hw - z), sigmoid(z - p["beta"] * t.hl)
    return (p["lambda_w"] * p["beta"] * up * (1 - up), p["lambda_l"] * p["beta"] * down * (1 - down))


def sppo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    win, lose = (t.win_w, t.win_l) if p["soft"] else (1.0, 0.0)
    return 2 * ((win - 0.5) / p["beta"] - t.hw), 2 * (t.hl - (lose - 0.5) / p["beta"])


def orpo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    chosen, rejected = np.exp(t.a / t.nw), np.exp(t.b / t.nl)
    odds_ratio = chosen / (1 - chosen) * (1 - rejected) / rejected
    pull = p["lambda"] / (1 + odds_ratio)
    return (1 + pull / (1 - chosen)) / t.nw, pull / (1 - rejected) / t.nl


def cal_dpo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    target, pull = 0.5 / p["beta"], sigmoid(t.hl - t.hw)
    return pull + 2 * p["kappa"] * (target - t.hw), pull + 2 * p["kappa"] * (t.hl + target)


def dpo_shift(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    factor = p["lambda"] * (1 - t.progress) + t.progress if p["schedule"] else p["lambda"]
    pull = p["beta"] * sigmoid(-p["beta"] * (t.hw - factor * t.hl))
    return pull, factor * pull


def sft(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    return 1 / t.nw, 0 * t.b


def extended_sft(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    return 1 / t.nw, -1 / t.nl


CLOSED: dict[str, Closed] = {
    form.__name__: form
    for form in (
        dpo, rdpo, simpo, ipo, rrhf, slic_hf, cpo, dpop, kto, sppo, orpo, cal_dpo, dpo_shift,
        sft, extended_sft,
    )
}  # fmt: skip


def nll(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    """Likelihood term of every pair, and what it adds to d_w, both times its weight."""
    per = {"sum": 1.0, "pair": t.nw, "batch": t.nw.mean()}[p["nll_mean"]]
    return -p["nll"] * t.a / per, p["nll"] / per


Score = Callable[[Any, Any, Any, dict[str, Any]], Any]
"""``(log-probability, tokens, reference log-probability, hyper-parameters) → score``."""


def ratio(logp: Any, n: Any, reference: Any, p: dict[str, Any]) -> Any:
    return logp - reference


def total(logp: Any, n: Any, reference: Any, p: dict[str, Any]) -> Any:
    return logp


def mean(logp: Any, n: Any, reference: Any, p: dict[str, Any]) -> Any:
    return logp / n


def ratio_by_length(logp: Any, n: Any, reference: Any, p: dict[str, Any]) -> Any:
    return (logp - reference) / n if p["average"] else logp - reference


def odds(logp: Any, n: Any, reference: Any, p: dict[str, Any]) -> Any:
    probability = np.exp(logp / n)
    return np.log(probability / (1 - probability))


SCORES: dict[str, Score] = {
    **dict.fromkeys(("dpo", "rdpo", "dpop", "kto", "sppo", "cal_dpo", "dpo_shift"), ratio),
    **dict.fromkeys(("slic_hf", "cpo"), total),
    **dict.fromkeys(("simpo", "rrhf", "sft", "extended_sft"), mean),
    "ipo": ratio_by_length,
    "orpo": odds,
}

Norms = tuple[Any, Any]
Shaped = Callable[[Any, float, Norms], tuple[Any, Any]]
"""``(numbers, β, (‖g_w‖, ‖g_l‖)) → d_w, d_l`` of DPO under a shaping with its default options."""


def _gated(t: Any, beta: float, statistic: Any, tau: float) -> tuple[Any, Any]:
    g = sigmoid(50 * (np.array(statistic) - tau))
    pull = beta * sigmoid(-beta * (t.hw - g * t.hl))
    return pull, g * pull


def gate_seq(t: Any, beta: float, norms: Norms) -> tuple[Any, Any]:
    return _gated(t, beta, np.exp(t.b / t.nl), 0.1)


def gate_q10(t: Any, beta: float, norms: Norms) -> tuple[Any, Any]:
    rejected = t.tokens[len(t.a) :]
    return _gated(t, beta, [np.quantile(np.exp(row), 0.1) for row in rejected], 0.005)


def adadpo(t: Any, beta: float, norms: Norms) -> tuple[Any, Any]:
    rho = np.minimum(np.exp(t.hw / t.nw - t.hl / t.nl), 2)
    pull = beta * sigmoid(-beta * (rho * t.hw - t.hl))
    return rho * pull, pull


def pairwise_normalised(t: Any, beta: float, norms: Norms) -> tuple[Any, Any]:
    pull = beta * sigmoid(-beta * (t.hw - t.hl))
    return pull / norms[0], pull / norms[1]


def plain_at_first(t: Any, beta: float, norms: Norms) -> tuple[Any, Any]:
    """Reward calibration of the batch has no average yet: DPO's own pulls."""
    pull = beta * sigmoid(-beta * (t.hw - t.hl))
    return pull, pull


def token_mask(t: Any, beta: float, norms: Norms) -> tuple[Any, Any]:
    sums = np.array([(mask * row).sum() for mask, row in zip(t.mask, t.ratios, strict=True)])
    pull = beta * sigmoid(-beta * (sums[: len(t.a)] - sums[len(t.a) :]))
    return pull, pull


SHAPED: dict[str, Shaped] = {
    "gate-seq": gate_seq,
    "gate-q10": gate_q10,
    "adadpo": adadpo,
    "pairwise-normalised": pairwise_normalised,
    "rc": plain_at_first,
    "token-mask": token_mask,
}


def numbers(t: Terms) -> Any:
    """The terms as numpy arrays under names of their own; ``tokens``, ``mask``, ``ratios`` are lists of response tokens
    for each row."""
    assert t.r_w is not None and t.r_l is not None and t.win_w is not None and t.win_l is not None
    assert t.token_logps is not None and t.response_mask is not None
    assert t.token_mask is not None and t.ref_token_logps is not None
    said = t.response_mask.bool()

    def spoken(values: Any) -> list[Any]:
        return [row[keep].numpy() for row, keep in zip(values, said, strict=True)]

    return SimpleNamespace(
        a=t.a.numpy(), b=t.b.numpy(), hw=(t.a - t.r_w).numpy(), hl=(t.b - t.r_l).numpy(), nw=t.n_w.numpy(),
        nl=t.n_l.numpy(), kl=float(t.kl or 0), win_w=t.win_w.numpy(), win_l=t.win_l.numpy(),
        progress=t.progress, tokens=spoken(t.token_logps), mask=spoken(t.token_mask),
        ratios=spoken(t.token_logps - t.ref_token_logps),
    )  # fmt: skip
