"""Gradient entanglement (Yuan et al. 2024, §3): conditions, cases, predicted change. Pure functions on arrays.

Letters (docs/notation.md): ``d_w = −∂ℓ/∂a`` and ``d_l = ∂ℓ/∂b`` are the pulls, so ``−∇ℓ = d_w g_w − d_l g_l``; ``η`` is
the step size of one plain gradient step. All predictions are first order, in nats per sequence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def predicted_delta(
    pull_chosen: ArrayLike,
    pull_rejected: ArrayLike,
    norm_chosen: ArrayLike,
    norm_rejected: ArrayLike,
    inner: ArrayLike,
    learning_rate: float,
) -> tuple[Floats, Floats]:
    """``(Δa, Δb)`` of each pair under one plain gradient step on that pair alone, ``[pairs]`` each.

    ``Δa = η(d_w‖g_w‖² − d_l⟨g_w,g_l⟩)``, ``Δb = η(d_w⟨g_w,g_l⟩ − d_l‖g_l‖²)`` (Yuan et al. 2024, §3).
    """
    d_w, d_l, n_w, n_l, dot = (
        np.asarray(v, dtype=np.float64) for v in (pull_chosen, pull_rejected, norm_chosen, norm_rejected, inner)
    )
    return learning_rate * (d_w * n_w**2 - d_l * dot), learning_rate * (d_w * dot - d_l * n_l**2)


def batch_delta(
    gram: ArrayLike, pull_chosen: ArrayLike, pull_rejected: ArrayLike, learning_rate: float
) -> tuple[Floats, Floats]:
    """``(Δa, Δb)`` of each pair under one plain gradient step on the batch's mean loss, ``[pairs]`` each.

    ``Δ(row i) = (η/B) Σ_j (d_w,j K[i,w_j] − d_l,j K[i,l_j])`` with ``gram = K [2B, 2B]``, rows ``[chosen; rejected]``.
    """
    k = np.asarray(gram, dtype=np.float64)
    signed = np.concatenate([np.asarray(pull_chosen, dtype=np.float64), -np.asarray(pull_rejected, dtype=np.float64)])
    pairs = len(signed) // 2
    delta = (learning_rate / pairs) * (k @ signed)
    return delta[:pairs], delta[pairs:]


def cases(delta_chosen: ArrayLike, delta_rejected: ArrayLike) -> NDArray[np.int32]:
    """``[pairs]``: 1 chosen up, rejected down; 2 both down; 3 both up; 4 chosen down, rejected up; 0 if not finite.

    Case 1 includes its boundaries (``Δa ≥ 0 ≥ Δb``). Case 4 is impossible for pulls ≥ 0, but is kept as a label because
    IPO, SPPO and Cal-DPO can have negative pulls.
    """
    a, b = np.asarray(delta_chosen, dtype=np.float64), np.asarray(delta_rejected, dtype=np.float64)
    case = np.select([(a >= 0) & (b <= 0), (a < 0) & (b <= 0), (a >= 0) & (b > 0), (a < 0) & (b > 0)], [1, 2, 3, 4], 0)
    return case.astype(np.int32)


def conditions(
    pull_chosen: ArrayLike,
    pull_rejected: ArrayLike,
    norm_chosen: ArrayLike,
    norm_rejected: ArrayLike,
    inner: ArrayLike,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Condition 2, ``[pairs]`` each: ``d_l⟨g_w,g_l⟩ ≤ d_w‖g_w‖²`` (chosen does not fall) and
    ``d_w⟨g_w,g_l⟩ ≤ d_l‖g_l‖²`` (rejected does not rise). Condition 1 is the case ``d_w = d_l``.

    Written without the division, so that it keeps its meaning for pulls ≤ 0.
    """
    up, down = predicted_delta(pull_chosen, pull_rejected, norm_chosen, norm_rejected, inner, 1.0)
    return up >= 0, down <= 0


def cosine(norm_chosen: ArrayLike, norm_rejected: ArrayLike, inner: ArrayLike) -> Floats:
    """``⟨g_w,g_l⟩ / (‖g_w‖‖g_l‖)``; NaN where a norm is 0."""
    n = np.asarray(norm_chosen, dtype=np.float64) * np.asarray(norm_rejected, dtype=np.float64)
    return np.divide(np.asarray(inner, dtype=np.float64), n, out=np.full_like(n, np.nan), where=n > 0)


def band_slack(
    pull_chosen: ArrayLike,
    pull_rejected: ArrayLike,
    norm_chosen: ArrayLike,
    norm_rejected: ArrayLike,
    inner: ArrayLike,
) -> Floats:
    """Nats by which ``log(d_w/d_l)`` lies inside the band where both conditions hold, ``[pairs]``; negative: outside.

    For ``⟨g_w,g_l⟩ > 0`` Condition 2 says that ``log(d_w/d_l)`` lies within ``log(‖g_l‖/‖g_w‖) ± |log cos|`` (the band
    of arXiv 2604.18239, there for batch means of the head's gradient; here per pair and for the whole model). The slack
    is the distance to the nearer edge. Norms and inner product in the optimizer's metric give the band in that metric.

    NaN where there is no band: a cosine ≤ 0 (every positive ratio is inside), a pull ≤ 0, a norm of 0.
    """
    d_w, d_l, n_w, n_l, dot = np.broadcast_arrays(
        *(np.asarray(v, dtype=np.float64) for v in (pull_chosen, pull_rejected, norm_chosen, norm_rejected, inner))
    )
    banded = (d_w > 0) & (d_l > 0) & (n_w > 0) & (n_l > 0) & (dot > 0)
    d_w, d_l, n_w, n_l, dot = (np.where(banded, v, 1.0) for v in (d_w, d_l, n_w, n_l, dot))
    half = np.maximum(np.log(n_w) + np.log(n_l) - np.log(dot), 0.0)  # a cosine above 1 is rounding
    off_centre = np.log(d_w) - np.log(d_l) - np.log(n_l) + np.log(n_w)
    return np.where(banded, half - np.abs(off_centre), np.nan)


def ches(chosen: ArrayLike, rejected: ArrayLike) -> Floats:
    """Centred hidden embedding similarity ``⟨H_w, H_l⟩ − ‖H_w‖²`` of each pair, ``[pairs]`` (arXiv 2410.08847, eq. 4).

    It is high where training on the pair lowers chosen most: the condition ``⟨g_w,g_l⟩ > ‖g_w‖²`` of a model whose head
    alone is trained, up to the residuals of its predictions.

    Args:
        chosen: ``H_w [pairs, d]``, the sum of the last hidden states from which the chosen response's tokens are
            predicted; their mean gives the length-normalised form.
        rejected: ``H_l [pairs, d]``, likewise.
    """
    h_w, h_l = (np.asarray(h, dtype=np.float64) for h in (chosen, rejected))
    return np.asarray((h_w * h_l).sum(1) - (h_w * h_w).sum(1))


def loss_gradient_norm(gram: ArrayLike, pull_chosen: ArrayLike, pull_rejected: ArrayLike) -> float:
    """``‖∇ mean loss‖ = sqrt(cᵀKc)`` with ``c`` the derivatives of the mean loss (law 1 of docs/notation.md)."""
    c = np.concatenate([-np.asarray(pull_chosen, dtype=np.float64), np.asarray(pull_rejected, dtype=np.float64)])
    c = c / (len(c) / 2)
    squared = float(c @ np.asarray(gram, dtype=np.float64) @ c)
    return max(0.0, squared) ** 0.5


def counterfactual(
    gram_entries: tuple[ArrayLike, ArrayLike, ArrayLike],
    pulls: tuple[ArrayLike, ArrayLike],
    learning_rate: float,
) -> tuple[Floats, Floats, NDArray[np.int32]]:
    """``(Δa, Δb, case)`` that pairs with ``(‖g_w‖, ‖g_l‖, ⟨g_w,g_l⟩)`` would have under other pulls.

    First order, at its own step size: it compares objectives by signs, not by sizes.
    """
    up, down = predicted_delta(*pulls, *gram_entries, learning_rate)
    return up, down, cases(up, down)
