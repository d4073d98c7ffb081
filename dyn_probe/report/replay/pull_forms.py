"""Pulls of the objectives in closed form, in numpy: what a method asks of a pair whose log-probabilities are known.

Letters as in docs/notation.md; the objectives are those of ``dyn_probe.objectives`` (docs/methods.md), whose own pulls
come from autograd and need torch: the tests hold both to each other. Every form is ``(state, hyper) → (d_w, d_l)``,
arrays of the state's shape (dimensionless).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dyn_probe.report.frames import Floats

Pulls = tuple[Floats, Floats]
Hyper = Mapping[str, Any]


@dataclass(frozen=True)
class PairState:
    """Where pairs stand: log-probabilities ``a``, ``b`` (nats/sequence, [..., pairs]), those of the reference ``r_w``,
    ``r_l``, and lengths ``n_w``, ``n_l`` (tokens); ``progress``: share of training done.

    ``gate`` and ``rho`` are the factors of shapings on the rejected and the chosen contribution.
    """

    a: Floats
    b: Floats
    r_w: Floats
    r_l: Floats
    n_w: Floats
    n_l: Floats
    progress: float = 0.0
    gate: Floats | float = 1.0
    rho: Floats | float = 1.0

    @property
    def h_w(self) -> Floats:
        """Log-ratio of chosen."""
        return self.a - self.r_w

    @property
    def h_l(self) -> Floats:
        """Log-ratio of rejected."""
        return self.b - self.r_l


def sigmoid(x: Floats) -> Floats:
    """σ(x), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(np.asarray(x) / 2)))


def _dpo(s: PairState, p: Hyper) -> Pulls:
    margin = p["beta"] * (s.rho * s.h_w - s.gate * s.h_l)
    pull = p["beta"] * (sigmoid(-margin) - p["label_smoothing"])
    return s.rho * pull, s.gate * pull


def _rdpo(s: PairState, p: Hyper) -> Pulls:
    margin = p["beta"] * (s.rho * s.h_w - s.gate * s.h_l) + p["alpha"] * (s.n_w - s.n_l)
    pull = p["beta"] * sigmoid(-margin)
    return s.rho * pull, s.gate * pull


def _simpo(s: PairState, p: Hyper) -> Pulls:
    margin = p["beta"] * (s.rho * s.a / s.n_w - s.gate * s.b / s.n_l) - p["gamma"]
    pull = p["beta"] * sigmoid(-margin)
    return s.rho * pull / s.n_w, s.gate * pull / s.n_l


def _ipo(s: PairState, p: Hyper) -> Pulls:
    n_w, n_l = (s.n_w, s.n_l) if p["average"] else (1.0, 1.0)
    short = 1 / p["beta"] - 2 * (s.rho * s.h_w / n_w - s.gate * s.h_l / n_l)
    return s.rho * short / n_w, s.gate * short / n_l


def _rrhf(s: PairState, p: Hyper) -> Pulls:
    misordered = (s.gate * s.b / s.n_l > s.rho * s.a / s.n_w).astype(np.float64)
    return p["lambda"] + s.rho * misordered / s.n_w, s.gate * misordered / s.n_l


def _slic_hf(s: PairState, p: Hyper) -> Pulls:
    active = (p["delta"] - s.rho * s.a + s.gate * s.b > 0).astype(np.float64)
    return p["lambda"] + s.rho * active, s.gate * active


def _cpo(s: PairState, p: Hyper) -> Pulls:
    pull = p["beta"] * sigmoid(-p["beta"] * (s.rho * s.a - s.gate * s.b))
    return s.rho * pull + p["lambda"] / (s.n_w if p["mean_nll"] else 1.0), s.gate * pull


def _dpop(s: PairState, p: Hyper) -> Pulls:
    below = s.h_w < 0
    pull = p["beta"] * sigmoid(-p["beta"] * (s.rho * s.h_w - s.gate * s.h_l + p["lambda"] * below * s.h_w))
    return pull * (s.rho + p["lambda"] * below), s.gate * pull


def _sppo(s: PairState, p: Hyper) -> Pulls:
    target = 0.5 / p["beta"]
    return 2 * s.rho * (target - s.rho * s.h_w), 2 * s.gate * (s.gate * s.h_l + target)


def _orpo(s: PairState, p: Hyper) -> Pulls:
    chosen, rejected = s.a / s.n_w, s.b / s.n_l
    margin = s.rho * _log_odds(chosen) - s.gate * _log_odds(rejected)
    pull = p["lambda"] * sigmoid(-margin)
    return (1 - s.rho * pull / np.expm1(chosen)) / s.n_w, -s.gate * pull / np.expm1(rejected) / s.n_l


def _log_odds(mean_logp: Floats) -> Floats:
    return mean_logp - np.log(-np.expm1(mean_logp))


def _cal_dpo(s: PairState, p: Hyper) -> Pulls:
    target, h_w, h_l = 0.5 / p["beta"], s.rho * s.h_w, s.gate * s.h_l
    pull = sigmoid(h_l - h_w)
    return s.rho * (pull + 2 * p["kappa"] * (target - h_w)), s.gate * (pull + 2 * p["kappa"] * (h_l + target))


def _dpo_shift(s: PairState, p: Hyper) -> Pulls:
    shift = p["lambda"] * (1 - s.progress) + s.progress if p["schedule"] else p["lambda"]
    pull = p["beta"] * sigmoid(-p["beta"] * (s.rho * s.h_w - shift * s.gate * s.h_l))
    return s.rho * pull, shift * s.gate * pull


FORMS: dict[str, Callable[[PairState, Hyper], Pulls]] = {
    "dpo": _dpo,
    "rdpo": _rdpo,
    "simpo": _simpo,
    "ipo": _ipo,
    "rrhf": _rrhf,
    "slic_hf": _slic_hf,
    "cpo": _cpo,
    "dpop": _dpop,
    "sppo": _sppo,
    "orpo": _orpo,
    "cal_dpo": _cal_dpo,
    "dpo_shift": _dpo_shift,
}
"""Objective → its pulls. KTO is not among them: its reference point is an estimate of its own batch."""


def likelihood_pull(s: PairState, p: Hyper) -> Floats:
    """What a likelihood term of weight `nll` adds to d_w: λ for `sum`, λ/n_w for `pair`, λ over the mean length for
    `batch`."""
    per: Floats | float = {"sum": 1.0, "pair": s.n_w, "batch": s.n_w.mean()}[p["nll_mean"]]
    return np.asarray(p["nll"] / per) + np.zeros_like(s.a)
