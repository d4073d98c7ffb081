"""``pair_gradients`` and ``row_gram``: exact gradient products of a batch, without a training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dyn_probe.engine.assembly import Assembly
from dyn_probe.engine.coverage import backward_only, explained
from dyn_probe.engine.graph import Graph
from dyn_probe.engine.layers import Layer, layers_of, sum_layers
from dyn_probe.engine.tap import Capture, Receiver
from dyn_probe.pairs import PairBatch, sequence_logps


@dataclass(frozen=True, eq=False)
class PairGradients:
    """Gradient products of ``B`` pairs (Yuan et al. 2024, §3): ``g_w``, ``g_l`` are the gradients of the chosen and
    rejected sequence log-probability over all trained parameters.

    Args:
        by_parameter: parameter name → ``[B, 3]``: ``‖g_w‖²``, ``‖g_l‖²``, ``⟨g_w, g_l⟩`` (float64).
        layers: parameter name → its layer.
        logps: ``[2B]`` sequence log-probabilities, nats.
    """

    by_parameter: Mapping[str, Tensor]
    layers: Mapping[str, Layer]
    logps: Tensor

    @property
    def totals(self) -> Tensor:
        """``[B, 3]``: the sums over parameters."""
        return torch.stack(list(self.by_parameter.values())).sum(0)

    @property
    def norm_chosen(self) -> Tensor:
        """``[B]`` ‖g_w‖."""
        return self.totals[:, 0].clamp(min=0).sqrt()

    @property
    def norm_rejected(self) -> Tensor:
        """``[B]`` ‖g_l‖."""
        return self.totals[:, 1].clamp(min=0).sqrt()

    @property
    def inner(self) -> Tensor:
        """``[B]`` ⟨g_w, g_l⟩."""
        return self.totals[:, 2]

    @property
    def cosine(self) -> Tensor:
        """``[B]`` ⟨g_w, g_l⟩ / (‖g_w‖‖g_l‖)."""
        return self.inner / (self.norm_chosen * self.norm_rejected)

    def by_layer(self) -> dict[Layer, Tensor]:
        """Layer → ``[B, 3]``, from input to output."""
        layers = [self.layers[name] for name in self.by_parameter]
        return sum_layers(torch.stack(list(self.by_parameter.values())), layers)


def pair_gradients(model: nn.Module, batch: PairBatch) -> PairGradients:
    """Exact gradient norms and inner product of every pair of ``batch``, by one forward and one backward.

    The backward computes activation gradients only; no gradient of a parameter is formed and none is changed.

    Raises:
        UnsupportedUse: a parameter's use cannot be explained; the message lists all of them.
    """
    answers, logps, capture, _ = measured(model, batch, full=False)
    return PairGradients(answers, layers_of(list(answers), capture.uses), logps)


def row_gram(model: nn.Module, batch: PairBatch) -> Tensor:
    """``K [2B, 2B]`` (float64): inner products of all responses' gradients, rows ``[chosen; rejected]``."""
    answers, *_ = measured(model, batch, full=True)
    return torch.stack(list(answers.values())).sum(0)


def measured(
    model: nn.Module, batch: PairBatch, full: bool, also: Receiver | None = None
) -> tuple[dict[str, Tensor], Tensor, Capture, Graph]:
    """The answers by parameter, the ``[2B]`` log-probabilities, and how they came about.

    Args:
        also: called with every tapped call, what it saved and the gradients of the sum of the log-probabilities by
            its outputs.
    """

    def receive(*arrived) -> None:  # type: ignore[no-untyped-def]
        assembly.receive(*arrived)
        if also is not None:
            also(*arrived)

    with Capture(model, receive, segments=batch.segments) as capture, torch.enable_grad():
        logps = sequence_logps(model, batch)
        graph = explained(capture, logps)
        assembly = Assembly(capture, full)
        backward_only(logps.sum(), capture, graph.reentrant)
    by_name = dict(zip(*assembly.finish(), strict=True))
    names = [name for use in capture.uses for name in use.parameters.values()]
    return {name: by_name[name] for name in names}, logps.detach(), capture, graph
