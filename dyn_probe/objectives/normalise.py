"""Pairwise-normalised updates: new coefficients for a pair's two gradients once their norms are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dyn_probe.objectives.table import Measured, Memory, Options, Reweighted

if TYPE_CHECKING:
    from torch import Tensor


class NormalisedPulls(NamedTuple):
    """Coefficients of a pairwise-normalised update, each ``[B]``: new pulls, and the factors on the old."""

    chosen: Tensor
    rejected: Tensor
    normaliser_chosen: Tensor
    normaliser_rejected: Tensor


def normalised_pulls(d_w: Tensor, d_l: Tensor, norm_w: Tensor, norm_l: Tensor) -> NormalisedPulls:
    """Pulls with which −∇ℓ = C·(g_w/‖g_w‖ − g_l/‖g_l‖), C = √(d_w d_l) (Yuan et al. 2024, §5.1).

    Where d_w = d_l, C is the objective's own scalar; for other objectives the root is a reconstruction, and so is
    that each pull keeps its sign, with C = √|d_w d_l|. Where a pull is 0 so is C, and the pair gets no update; a
    response without a gradient gets the coefficient 0.

    Args:
        d_w, d_l: the objective's pulls, ``[B]``.
        norm_w, norm_l: gradient norms ‖g_w‖, ‖g_l‖, ``[B]``.
    """
    scalar = d_w.abs().sqrt() * d_l.abs().sqrt()
    new = [(d.sign() * scalar / norm).where(norm > 0, 0.0) for d, norm in ((d_w, norm_w), (d_l, norm_l))]
    factors = [(n / d).where(d != 0, 0.0) for n, d in zip(new, (d_w, d_l), strict=True)]
    return NormalisedPulls(*new, *factors)


def normalise(measured: Measured, options: Options, memory: Memory) -> Reweighted:
    """The shaping: normalised pulls of a measured batch, by plain norms or by those in the optimizer's metric."""
    new = normalised_pulls(measured.d_w, measured.d_l, *_norms(measured))
    columns = {"normaliser_chosen": new.normaliser_chosen, "normaliser_rejected": new.normaliser_rejected}
    return Reweighted(new.chosen, new.rejected, columns)


def in_metric(options: Options) -> bool:
    """Whether the shaping's options ask for norms in the optimizer's metric."""
    return options["metric"] == "optimizer"


def _norms(measured: Measured) -> tuple[Tensor, Tensor]:
    """Norms that stand in the ratio of those in the metric, where there are any, and have the plain ones' geometric
    mean: so the size of the step stays that of the plain form, whatever the unit of the metric."""
    plain, inside = (measured.norm_w, measured.norm_l), (measured.metric_norm_w, measured.metric_norm_l)
    if inside[0] is None or inside[1] is None:
        return plain
    scale = (plain[0].sqrt() * plain[1].sqrt()) / (inside[0].sqrt() * inside[1].sqrt())
    usable = (plain[0] > 0) & (plain[1] > 0) & (inside[0] > 0) & (inside[1] > 0)
    return (inside[0] * scale).where(usable, plain[0]), (inside[1] * scale).where(usable, plain[1])


def surrogate_loss(a: Tensor, b: Tensor, d_w: Tensor, d_l: Tensor) -> Tensor:
    """``[B]`` −d_w a + d_l b with the pulls detached: its gradient is that of any loss with these pulls.

    A training loop backpropagates it where the pulls are changed after the loss.
    """
    return -d_w.detach() * a + d_l.detach() * b
