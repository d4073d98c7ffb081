"""Pushes: what moved each log-probability in a step, taken apart.

With ``G = κ (Σ_j c_j g_j) + G_other`` the gradient that the optimizer saw and ``Δθ = −ωP∘(G + γθ) − p − λ_d θ`` its
step (``applied.AppliedStep``), the first-order change of row i is the sum of

    own chosen     −ω κ c_w ⟨g_i, P g_w⟩        own rejected   −ω κ c_l ⟨g_i, P g_l⟩
    others         −ω ⟨g_i, P G⟩ − both own parts: other pairs, and other terms of the loss
    past           −⟨g_i, p⟩                    decay          −λ_d ⟨g_i, θ⟩ − ωγ ⟨g_i, Pθ⟩
    rounding       ⟨g_i, Δθ as stored⟩ − the sum of the parts above

The parts come from the gradient and the optimizer's state, the total from the weights that are stored before and after:
``rounding`` is the residual of two things that were obtained independently (law 7). One parameter at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import exact_products
from dyn_probe.engine.assembly import pair_columns
from dyn_probe.engine.held import Held
from dyn_probe.metric.applied import AppliedStep, wide
from dyn_probe.metric.row_products import Explained, Moved, RowProducts, Rows, row_products
from dyn_probe.metric.split import SplitMomentum

SIDES = ("all_chosen", "all_rejected")
PARTS = ("own_chosen", "own_rejected", "others", "past", "decay")
"""What a total is made of, beside rounding."""


@dataclass(frozen=True, eq=False)
class StepRows:
    """The rows of one recorded batch (one of several micro-batches, or one process's) in a step.

    Args:
        held: their gradients.
        coefficients: ``c [2B]`` ``∂(backpropagated loss)/∂(row log-probability)``.
        factor: ``κ``: what the recorded gradient was multiplied by before the optimizer saw it; None where it could
            not be read.
        full: also give the Gram of all rows in the step's metric.
    """

    held: Held
    coefficients: Tensor
    factor: float | None
    full: bool = False


@dataclass(eq=False)
class Pushes:
    """``[2B]`` each (float64, nats): what a step did to each row's log-probability, to first order.

    ``entries [B, 3]`` (nats) are ``⟨g_w, ωP g_w⟩``, ``⟨g_l, ωP g_l⟩`` and ``⟨g_w, ωP g_l⟩`` of each pair,
    ``gram [2B, 2B]`` all products ``⟨g_i, ωP g_j⟩``, where it was asked for.
    ``all_chosen`` and ``all_rejected`` are the pushes of all chosen and all rejected responses of this step and of
    those before it; None without a split momentum.
    """

    own_chosen: Tensor
    own_rejected: Tensor
    others: Tensor
    past: Tensor
    decay: Tensor
    total: Tensor
    all_chosen: Tensor | None = None
    all_rejected: Tensor | None = None
    entries: Tensor | None = None
    gram: Tensor | None = None

    @staticmethod
    def empty(rows: int, device: torch.device, split: bool = False) -> Pushes:
        """Zeros."""
        names = (*PARTS, "total", *(SIDES if split else ()))
        return Pushes(**{name: torch.zeros(rows, dtype=torch.float64, device=device) for name in names})

    @property
    def rounding(self) -> Tensor:
        """``[2B]``: the total less all parts: law 7's residual, or what the weights' type could not hold."""
        return self.total - torch.stack([getattr(self, name) for name in PARTS]).sum(0)

    @property
    def size(self) -> Tensor:
        """``[2B]`` ``Σ|parts|``: what law 7's residual is compared with."""
        return torch.stack([getattr(self, name).abs() for name in PARTS]).sum(0)


def take_apart(
    batches: Sequence[StepRows],
    moves: Iterable[Moved],
    split: SplitMomentum | None = None,
    explained: Explained | None = None,
) -> list[Pushes]:
    """The pushes on every row of every batch.

    Args:
        moves: every parameter that the step moved.
        split: the momentum of chosen and rejected gradients, brought up to date with this step.
        explained: how much of the gradient is the recorded rows'; completed here.
    """
    found = [Pushes.empty(b.held.rows, b.coefficients.device, split is not None) for b in batches]
    rows = [Rows(b.held, b.coefficients, 1 if b.full else b.held.rows // 2) for b in batches]
    with exact_products(batches[0].held.device):
        for move in moves:
            products = row_products(rows, move, partial(_directions, split=split), explained)
            for batch, pushes, one in zip(batches, found, products, strict=True):
                _add(batch, pushes, move.step, one)
    return found


def _directions(move: Moved, split: SplitMomentum | None) -> dict[str, Tensor]:
    """What a step is made of, each as few operations on the parameter as there can be: the parts are sums of products
    with these."""
    step, before = move.step, move.before
    found = {"total": wide(move.after) - wide(before), "gradient": step.times_metric(move.gradient)}
    if (momentum := step.momentum) is not None:
        found["momentum"] = step.times_metric(momentum.buffer) if momentum.in_metric else wide(momentum.buffer)
    if not _zero(step.decay):
        found["weights"] = wide(before)
    if not _zero(step.coupled):
        found["scaled weights"] = step.times_metric(before)
    if split is not None:
        found["all_chosen"], found["all_rejected"] = split.moves(move.name, step, move.entries)
    return found


def _zero(scalar: float | Tensor) -> bool:
    return not isinstance(scalar, Tensor) and scalar == 0


def _add(batch: StepRows, pushes: Pushes, step: AppliedStep, products: RowProducts) -> None:
    """Add one parameter's share to the pushes of a batch."""
    along = products.along
    zero = torch.zeros_like(along["total"])
    inside = along["gradient"] + step.coupled * along.get("scaled weights", zero)  # ⟨g_i, P∘(G + γθ)⟩
    pushes.total += along["total"]
    if (momentum := step.momentum) is not None:
        pushes.past -= momentum.weight * (along["momentum"] - momentum.share * inside)
    pushes.decay -= step.decay * along.get("weights", zero)
    pushes.decay -= step.weight * step.coupled * along.get("scaled weights", zero)
    own = _own(batch, pushes, products.gram * step.weight)
    pushes.own_chosen += own[0]
    pushes.own_rejected += own[1]
    pushes.others -= step.weight * along["gradient"] + own[0] + own[1]
    if pushes.all_chosen is not None and pushes.all_rejected is not None:
        pushes.all_chosen += along["all_chosen"]
        pushes.all_rejected += along["all_rejected"]


def _own(batch: StepRows, pushes: Pushes, gram: Tensor) -> Tensor:
    """``[2, 2B]`` both own parts, from ``⟨g_i, ωP g_j⟩ [G, n, n]``; not known without the gradient's factor."""
    pairs = batch.held.rows // 2
    if batch.full:
        whole = gram[0]
        pushes.gram = whole if pushes.gram is None else pushes.gram + whole
        gram = whole.unflatten(0, (2, pairs)).unflatten(2, (2, pairs)).diagonal(dim1=1, dim2=3).permute(2, 0, 1)
    entries = pair_columns(gram)
    pushes.entries = entries if pushes.entries is None else pushes.entries + entries
    if batch.factor is None:
        return torch.full((2, 2 * pairs), float("nan"), dtype=torch.float64, device=batch.coefficients.device)
    return own_parts(gram, batch.factor * batch.coefficients)


def own_parts(gram: Tensor, coefficients: Tensor) -> Tensor:
    """``[2, 2B]``: what a pair's chosen (0) and rejected (1) gradient do to both of its rows.

    Args:
        gram: ``[B, 2, 2]`` ``⟨g_i, ωP g_j⟩`` within each pair.
        coefficients: ``κc [2B]``.
    """
    weights = coefficients.unflatten(0, (2, -1)).T  # [B, 2]
    return -(gram * weights[:, None, :]).permute(2, 1, 0).flatten(1)


def balance(all_chosen: Tensor, all_rejected: Tensor) -> Tensor:
    """``−Σ all_rejected / Σ all_chosen − 1`` over chosen rows: positive where rejected pushes outweigh chosen ones."""
    return -all_rejected.sum() / all_chosen.sum() - 1
