"""The rows of the two tables: an objective, a shaping, and a shaping with its options. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from dyn_probe.objectives.options import Value

if TYPE_CHECKING:
    from torch import Tensor

    from dyn_probe.objectives.terms import Terms

Columns: TypeAlias = "dict[str, Tensor]"
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Objective:
    """One objective.

    Args:
        loss: ``loss(terms, hyper) -> ℓ [B]`` (nats), minimised.
        defaults: hyper-parameters and their values where none are given.
        needs_reference: whether ``r_w`` and ``r_l`` enter.
        terms: further terms it needs; ``terms_if[option]``: those it needs where a switch is on.
        shapings: names of the shapings (SHAPINGS) it composes with.
        stage: whether it is a warm-up stage (--sft-objective) rather than an objective of preference training.
        when, dynamics, notes: for the reader: when to use it, how its pulls behave, and choices that we made.
    """

    name: str
    loss: Callable[[Terms, Options], Tensor]
    defaults: Mapping[str, float | bool]
    needs_reference: bool
    formula: str
    paper: str
    when: str
    dynamics: str
    notes: str = ""
    terms: tuple[str, ...] = ()
    terms_if: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shapings: tuple[str, ...] = ()
    stage: bool = False

    def needs(self, hyper: Mapping[str, Value]) -> tuple[str, ...]:
        """Names of the terms the loss reads besides a, b, n_w and n_l."""
        extra = tuple(t for switch, names in self.terms_if.items() if hyper[switch] for t in names)
        return (("r_w", "r_l") if self.needs_reference else ()) + self.terms + extra


@dataclass(frozen=True)
class Shaping:
    """One shaping.

    Args:
        apply: ``(objective, terms, options) -> (terms, columns)``, shapes the terms before the loss; None
            where the update is reweighted after it (needs gradient norms).
        defaults: options and their values where none are given.
        columns: names of the trace columns it fills.
        needs: names of the terms it reads besides those of the objective.
        when, dynamics, notes: as for an objective.
    """

    name: str
    apply: Callable[[Objective, Terms, Options], tuple[Terms, Columns]] | None
    defaults: Mapping[str, Value]
    columns: tuple[str, ...]
    formula: str
    paper: str
    when: str
    dynamics: str
    notes: str = ""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChosenShaping:
    """A shaping with all its options."""

    shaping: Shaping
    options: Options

    @property
    def name(self) -> str:
        """Name of the shaping."""
        return self.shaping.name
