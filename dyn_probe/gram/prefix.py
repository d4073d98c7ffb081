"""A pair's three products where its rows share a prompt: what is the same is computed once, padding not at all.

On the shared prefix ``P`` both rows have the same inputs ``A_P``. With ``S_XY = A_X A_Yᵀ``, ``X`` and ``Y`` being
the prefix or a row's rest, a product of two parts is ``⟨B_X, S_XY B_Y⟩``, and ``S_PP B`` and ``S_PR B`` serve both
rows. Against three token Grams that is half of the work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dyn_probe.capture.uses import Span


def pairs_by_prefix(inputs: Tensor, outputs: Tensor, spans: tuple[Span, ...]) -> Tensor:
    """``[pairs, 3]`` (``‖g_w‖²``, ``‖g_l‖²``, ``⟨g_w,g_l⟩``), float64.

    Args:
        inputs: ``A [2B, P, p]``.
        outputs: ``B [2B, P, q]``.
        spans: one per pair; used only as far as the tensors agree.
    """
    half = len(spans)
    found = []
    for i, span in enumerate(spans):
        chosen = _cut(inputs[i], outputs[i], span.start_chosen, span.end_chosen)
        rejected = _cut(inputs[i + half], outputs[i + half], span.start_rejected, span.end_rejected)
        shared = min(span.shared, len(chosen[0]), len(rejected[0]))
        if shared and not torch.equal(chosen[0][:shared], rejected[0][:shared]):
            shared = 0
        found.append(_products(*chosen, *rejected, shared))
    return torch.tensor(found, dtype=torch.float64)


def _cut(inputs: Tensor, outputs: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
    """A row without its padding, if nothing flows back to the padding."""
    if end > len(outputs) or outputs[:start].any() or outputs[end:].any():
        return inputs, outputs
    return inputs[start:end], outputs[start:end]


def _products(a_w: Tensor, b_w: Tensor, a_l: Tensor, b_l: Tensor, shared: int) -> tuple[float, float, float]:
    """The three products of one pair whose first ``shared`` inputs are equal."""
    (p_w, r_w), (p_l, r_l) = (b_w[:shared], b_w[shared:]), (b_l[:shared], b_l[shared:])
    rest_w, rest_l = a_w[shared:], a_l[shared:]
    by_w = a_w @ rest_w.T @ r_w
    by_l = torch.cat([a_w, rest_l]) @ rest_l.T @ r_l
    y_w, y_l, z_w, z_wl, z_l = by_w[:shared], by_l[:shared], by_w[shared:], by_l[shared : len(a_w)], by_l[len(a_w) :]
    ww, ll, wl = _dot(r_w, z_w), _dot(r_l, z_l), _dot(r_w, z_wl)
    if shared:
        square = a_w[:shared] @ a_w[:shared].T
        x_w, x_l = square @ p_w, square @ p_l
        ww += _dot(p_w, x_w) + 2 * _dot(p_w, y_w)
        ll += _dot(p_l, x_l) + 2 * _dot(p_l, y_l)
        wl += _dot(p_w, x_l) + _dot(p_l, y_w) + _dot(p_w, y_l)
    return ww, ll, wl


def _dot(left: Tensor, right: Tensor) -> float:
    """``Σ left · right``."""
    return float(torch.dot(left.reshape(-1), right.reshape(-1)))
