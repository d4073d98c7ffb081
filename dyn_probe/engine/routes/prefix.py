"""A pair's three products where its rows share a prompt: what is the same is computed once, padding not at all.

On the shared prefix ``P`` both rows have the same inputs, and within a row ``(t, s)`` and ``(s, t)`` count alike. Of
the token Grams ``A_X A_Yᵀ`` and ``B_X B_Yᵀ``, with ``X`` and ``Y`` the prefix ``P`` or a row's rest ``R``, the inputs'
are needed for PP once, for RP and RR, the outputs' for PP, RP and RR of each row and for all positions of one row
against the other: two thirds of three full token Grams where the prefix is half of the row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyn_probe.engine.layout import Span

TOGETHER = 1.4
"""How much more arithmetic all pairs in one batched product may need than one after the other (measured on CPUs)."""


def pairs_by_prefix(inputs: Tensor, outputs: Tensor, spans: tuple[Span, ...]) -> Tensor:
    """``[pairs, 2, 2]`` inner products of each pair's two rows, float64.

    Args:
        inputs: ``A [2B, P, p]``.
        outputs: ``B [2B, P, q]``.
        spans: one per pair; used only as far as the tensors agree.
    """
    half = len(spans)
    if together(spans):
        return _products(inputs, outputs, hull(spans))
    return torch.cat([_products(inputs[i::half], outputs[i::half], span) for i, span in enumerate(spans)])


def along_by_prefix(inputs: Tensor, outputs: Tensor, spans: tuple[Span, ...], matrix: Tensor) -> Tensor | None:
    """``[2B]`` ``Σ_t B_i[t] · D A_i[t]`` of every row, ``D A`` on a shared prompt once; None where nothing is shared.

    Args:
        inputs, outputs, spans: as for ``pairs_by_prefix``.
        matrix: ``D [q, p]``.
    """
    (a_w, b_w), (a_l, b_l), s = _cut_pairs(inputs, outputs, hull(spans))
    if s == 0:
        return None
    lengths = [s, a_w.shape[1] - s, a_l.shape[1] - s]
    prefix, *rests = (torch.cat([a_w, a_l[:, s:]], 1) @ matrix.T).split(lengths, 1)
    sides = zip(rests, (b_w, b_l), strict=True)
    return torch.cat([_flat_dot(prefix, b[:, :s]) + _flat_dot(rest, b[:, s:]) for rest, b in sides])


def _flat_dot(left: Tensor, right: Tensor) -> Tensor:
    """``[n]``: ``Σ left · right`` over all but the first dimension, without their product in memory."""
    return torch.linalg.vecdot(left.flatten(1), right.flatten(1))


def hull(spans: Sequence[Span]) -> Span:
    """The span that holds every span, and as much of the prefix as all pairs share."""
    start_chosen, start_rejected = min(s.start_chosen for s in spans), min(s.start_rejected for s in spans)
    aligned = all(s.start_chosen == s.start_rejected for s in spans)
    shared = min(s.start_chosen + s.shared for s in spans) - start_chosen if aligned else 0
    ends = max(s.end_chosen for s in spans), max(s.end_rejected for s in spans)
    return Span(start_chosen, ends[0], start_rejected, ends[1], shared)


def together(spans: Sequence[Span]) -> bool:
    """Whether all pairs are taken at once, as if each were as long as their hull."""
    return len(spans) * work(hull(spans)) <= TOGETHER * sum(work(span) for span in spans)


def pairs_work(spans: Sequence[Span]) -> int:
    """``work`` of all pairs, as they are taken."""
    return len(spans) * work(hull(spans)) if together(spans) else sum(work(span) for span in spans)


def work(span: Span) -> int:
    """Entries of the token Grams of inputs and outputs that a pair needs."""
    n, m, s = span.end_chosen - span.start_chosen, span.end_rejected - span.start_rejected, span.shared
    return 2 * n * (n - s) + 2 * m * (m - s) + n * m + (n - s) * (m - s) + 3 * s * s


def _products(inputs: Tensor, outputs: Tensor, span: Span) -> Tensor:
    """``[n, 2, 2]``: the products of ``n`` pairs ``[2n, P, ·]``, all cut to the same span."""
    (a_w, b_w), (a_l, b_l), s = _cut_pairs(inputs, outputs, span)
    prefix = torch.bmm(a_w[:, :s], a_w[:, :s].mT)
    squared_w, left = _squared(a_w, b_w, prefix)
    squared_l, right = _squared(a_l, b_l, prefix)
    outputs = torch.bmm(b_w, b_l.mT)
    inner = _dot(prefix, outputs[:, :s, :s]) + _dot(torch.bmm(a_w[:, s:], a_l[:, s:].mT), outputs[:, s:, s:])
    inner += _dot(left, outputs[:, s:, :s]) + _dot(right.mT, outputs[:, :s, s:])
    return torch.stack([squared_w, inner, inner, squared_l], 1).double().unflatten(1, (2, 2))


def _cut_pairs(inputs: Tensor, outputs: Tensor, span: Span) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """``A`` and ``B`` of the chosen and of the rejected rows without padding, and how much of the prefix they share."""
    half = len(inputs) // 2
    chosen = _cut(inputs[:half], outputs[:half], span.start_chosen, span.end_chosen)
    rejected = _cut(inputs[half:], outputs[half:], span.start_rejected, span.end_rejected)
    return chosen, rejected, _agreed(chosen[0], rejected[0], span.shared)


def _agreed(chosen: Tensor, rejected: Tensor, shared: int) -> int:
    """How many of the first positions may be computed once: ``shared``, or none if the inputs differ there."""
    s = min(shared, chosen.shape[1], rejected.shape[1])
    return s if torch.equal(chosen[:, :s], rejected[:, :s]) else 0


def _cut(inputs: Tensor, outputs: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Rows without their padding, if nothing flows back to the padding."""
    length = outputs.shape[1]
    flows = end > length or (start and outputs[:, :start].any()) or (end < length and outputs[:, end:].any())
    return (inputs, outputs) if flows else (inputs[:, start:end], outputs[:, start:end])


def _squared(inputs: Tensor, outputs: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
    """``[n]`` squared norms, and the inputs' token Gram of the rest against the prefix ``[n, R, P]``."""
    s = prefix.shape[1]
    rest, grads = torch.bmm(inputs[:, s:], inputs.mT), torch.bmm(outputs[:, s:], outputs.mT)
    products = rest * grads
    squared = 2 * products[:, :, :s].sum((1, 2)) + products[:, :, s:].sum((1, 2))
    return squared + _dot(prefix, torch.bmm(outputs[:, :s], outputs[:, :s].mT)), rest[:, :, :s]


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """``[n]``: ``Σ left · right`` over all but the first dimension."""
    return (left * right).sum((1, 2))
