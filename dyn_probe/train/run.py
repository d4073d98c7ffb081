"""A run in progress, and weights after a warm-up that several runs share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.mass.probe_tokens import TokenProbes
from dyn_probe.mass.start_kl import StartPolicy
from dyn_probe.objectives.table import Memory
from dyn_probe.probe import Probe
from dyn_probe.trace.writer import TraceWriter
from dyn_probe.train.display import Display
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.reference_model import Reference
from dyn_probe.train.setup import Setup


@dataclass(eq=False)
class WarmStart:
    """The policy after its supervised stages: filled by the first run, reused by later runs of the same model, data
    and seed.

    Args:
        weights, losses: of the policy and of its stages.
        basis: batch size and training pairs of the run that made it; one with others makes a start of its own.
        table: its log-probabilities of the pairs that a run uses, where a run took it as its reference.
    """

    weights: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    basis: tuple[Any, ...] = ()
    table: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(eq=False)
class Run:
    """A run in progress. ``module`` is what the steps call: the model itself, wrapped in DDP, or sharded by FSDP2."""

    setup: Setup
    writer: TraceWriter
    display: Display
    module: nn.Module
    probe: Probe
    optimizer: torch.optim.Optimizer
    reference: Reference | None = None
    mask: nn.Module | None = None
    first: int = 0
    probes: TokenProbes | None = None
    start: dict[str, float] = field(default_factory=dict)
    target_passed: bool = False
    memory: Memory = field(default_factory=dict)
    """What a reweighting of pulls keeps from step to step."""
    observed: list[Tensor] = field(default_factory=list)
    """What it has seen of the micro-batches of the step in progress."""
    start_policy: StartPolicy = field(default_factory=lambda: StartPolicy(0))
    """What is known of the policy at the start of preference training: KL is measured against it."""
    held_out_start: dict[str, tuple[float, float]] | None = None
    """Pair id → ``(a, b)`` at the first evaluation, where there is no reference to compare with; None: not known."""

    pairs_start: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Pair id → ``(a, b)`` of pairs that are trained on, before training, where there is no reference."""

    @property
    def config(self) -> RunConfig:
        return self.setup.config

    @property
    def trained(self) -> list[nn.Parameter]:
        """Every parameter that the optimizer updates, those of a learned module included."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def not_averaged(self) -> list[nn.Parameter]:
        """Parameters whose gradients no wrapper averages over the processes: all of them where pulls are reweighted
        (DDP sees no backward then), the learned module's otherwise."""
        if self.setup.method.reweighting is not None:
            return self.trained
        return [] if self.mask is None else list(self.mask.parameters())
