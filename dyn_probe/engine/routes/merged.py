"""The sum of all rows' gradients from fewer positions: padding left out, a prompt that a pair shares taken once.

On a shared prompt both rows of a pair have the same inputs, so ``Σ_i B_iᵀ A_i`` needs only the sum of their
output-gradients there. A training's own backward computes every position of every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import as32
from dyn_probe.engine.layout import Span
from dyn_probe.engine.routes.rates import CPU


@dataclass(frozen=True, eq=False)
class Positions:
    """Positions of rows ``[2B, P]``, flattened.

    Args:
        once: ``[T]`` those that the sum needs.
        again: ``[S]`` the shared prompts in the rejected rows.
        first: ``[S]`` the same positions in the chosen rows.
        at: ``[S]`` where in ``once`` these are.
        rest: padding.
    """

    once: Tensor
    again: Tensor
    first: Tensor
    at: Tensor
    rest: Tensor


@lru_cache(maxsize=8)
def positions(spans: tuple[Span, ...], length: int) -> Positions:
    """Those of a batch with one span per pair, all of whose rows have ``length`` positions."""
    chosen, rejected, shared = torch.zeros(3, len(spans), length, dtype=torch.bool, device="cpu")
    for i, span in enumerate(spans):
        chosen[i, span.start_chosen : span.end_chosen] = True
        rejected[i, span.start_rejected : span.end_rejected] = True
        shared[i, span.start_chosen : span.start_chosen + span.shared] = True
    needed = torch.cat([chosen, rejected & ~shared]).flatten()
    first = shared.flatten().nonzero()[:, 0]
    at = (needed.cumsum(0) - 1)[first]
    once, rest = needed.nonzero()[:, 0], (~torch.cat([chosen, rejected])).flatten().nonzero()[:, 0]
    return Positions(once, first + shared.numel(), first, at, rest)


def fewer(spans: tuple[Span, ...], length: int, inputs: int, outputs: int) -> int:
    """How many positions of a ``[outputs, inputs]`` use are taken; all of them where gathering would cost too much."""
    everything, needed = 2 * len(spans) * length, len(positions(spans, length).once)
    return needed if gathering(needed, inputs, outputs) < (everything - needed) * inputs * outputs else everything


def gathering(needed: int, inputs: int, outputs: int) -> float:
    """What it costs to compare and gather so many positions, in multiply-adds."""
    return CPU.entry * needed * (inputs + outputs)


def merged(inputs: Tensor, outputs: Tensor, spans: tuple[Span, ...]) -> tuple[Tensor, Tensor] | None:
    """``(A [T, p], B [T, q])`` with the sum of all rows' gradients ``Σ_t B[t] ⊗ A[t]``; None where every position is
    needed: something flows to the padding or is not finite there, a pair's prompts differ, or too little is saved.

    Args:
        inputs: ``A [2B, P, p]``, on a CPU.
        outputs: ``B [2B, P, q]``.
        spans: one per pair; used only as far as the tensors agree.
    """
    rows, length = outputs.shape[:2]
    if not len(inputs) == rows == 2 * len(spans):
        return None
    if fewer(spans, length, inputs.shape[-1], outputs.shape[-1]) == rows * length:
        return None
    own = positions(spans, length)
    a, b = inputs.flatten(0, 1), outputs.flatten(0, 1)
    if len(own.rest) and not _nothing_comes_of(a.index_select(0, own.rest), b.index_select(0, own.rest)):
        return None
    if not torch.equal(a.index_select(0, own.first), a.index_select(0, own.again)):
        return None
    needed, again = (as32(b.index_select(0, where)) for where in (own.once, own.again))
    return a.index_select(0, own.once), needed.index_add_(0, own.at, again)


def _nothing_comes_of(inputs: Tensor, outputs: Tensor) -> bool:
    """Whether these positions add 0 to the sum (infinity times 0 is not a number, which a training must see)."""
    return not outputs.any() and bool(inputs.sum().isfinite())
