"""``pair_gradients`` and ``row_gram``: exact gradient products of a batch, without a training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dyn_probe.engine.assembly import Assembly
from dyn_probe.engine.coverage import check_coverage, check_hidden, check_rows
from dyn_probe.engine.graph import Graph
from dyn_probe.engine.layers import Layer, layers_of, sum_layers
from dyn_probe.engine.tap import Capture, Receiver
from dyn_probe.engine.uses import Use
from dyn_probe.errors import BadInput, UnsupportedUse
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
        return sum_layers(self.by_parameter, self.layers)


def pair_gradients(model: nn.Module, batch: PairBatch) -> PairGradients:
    """Exact gradient norms and inner product of every pair of ``batch``, by one forward and one backward.

    The backward computes activation gradients only; no gradient of a parameter is formed and none is changed.

    Raises:
        UnsupportedUse: a parameter's use cannot be explained; the message lists all of them.
    """
    answers, logps, uses = _products(model, batch, full=False)
    return PairGradients(answers, layers_of(list(answers), uses), logps)


def row_gram(model: nn.Module, batch: PairBatch) -> Tensor:
    """``K [2B, 2B]`` (float64): inner products of all responses' gradients, rows ``[chosen; rejected]``."""
    answers, _, _ = _products(model, batch, full=True)
    return torch.stack(list(answers.values())).sum(0)


def _products(model: nn.Module, batch: PairBatch, full: bool) -> tuple[dict[str, Tensor], Tensor, list[Use]]:
    answers, logps, capture, _ = measured(model, batch, full)
    return answers, logps, capture.uses


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
    return assembly.finish(), logps.detach(), capture, graph


def explained(capture: Capture, logps: Tensor) -> Graph:
    """See that every use behind ``logps`` is explained; returns the graph.

    Raises:
        BadInput: the log-probabilities carry no gradient.
        UnsupportedUse: a use that no rule explains, or rows that are mixed; the message lists all of them.
    """
    capture.check()
    if logps.grad_fn is None:
        raise BadInput(
            "wanted log-probabilities that carry a gradient; these are detached, or every parameter is frozen"
        )
    graph = check_coverage(capture, logps)
    if not capture.survey.split:
        check_rows(capture, logps, lambda loss: backward_only(loss, capture, graph.reentrant, retain=True))
    return graph


def backward_only(loss: Tensor, capture: Capture, reentrant: bool, retain: bool = False) -> None:
    """Run the taps behind ``loss`` and leave every parameter's ``.grad`` as it was.

    Reentrant checkpoints refuse ``autograd.grad``; there a plain backward runs, with the gradients put aside.
    """
    if not reentrant:
        torch.autograd.grad(loss, [capture.anchor], allow_unused=True, retain_graph=retain)
        return
    parameters = capture.survey.trained
    aside = {name: p.grad for name, p in parameters.items()}
    try:
        for p in parameters.values():
            p.grad = None
        loss.backward(retain_graph=retain)
        missed = [n for n, p in parameters.items() if p.grad is not None and n not in capture.taken]
    finally:
        for name, p in parameters.items():
            p.grad = aside[name]
    check_hidden(capture)
    refuse_missed(missed)


def refuse_missed(names: Sequence[str]) -> None:
    """Raise for parameters that got a gradient which no tap saw."""
    if names:
        raise UnsupportedUse(
            "cannot record this model exactly; parameters are used outside their module:\n  " + "\n  ".join(names)
        )
