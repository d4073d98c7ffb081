"""The rows of the two tables: an objective, a shaping, and a shaping with its options. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from dyn_probe.objectives.options import LIKELIHOOD, Value
from dyn_probe.objectives.scores import Score

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dyn_probe.objectives.pair_terms import Terms

Columns: TypeAlias = "dict[str, Tensor]"
Options = Mapping[str, Any]
Memory = Mapping[str, float]
"""What a reweighting keeps from step to step; empty before the first."""


CHANGES = ("chosen", "rejected", "length")
"""A stronger pull on chosen, a weaker push on rejected, lengths that no longer count."""


@dataclass(frozen=True)
class Objective:
    """One objective: its loss, and everything that a training loop must know of it.

    Args:
        loss: ``loss(terms, hyper) -> ℓ [B]`` (nats), minimised.
        defaults: hyper-parameters and their values where none are given.
        needs_reference: whether ``r_w`` and ``r_l`` enter.
        score: what it compares of a response; ``score_if[option]``: what it compares where a switch is on.
        terms: further terms it needs; TERMS says what each asks of the loop. ``terms_if[option]``: those it needs where
            a switch is on.
        columns: trace columns of its coefficients that are no constants, with their values.
        target: what the loss aims at, in words, where a pull reverses beyond it.
        balance: ``u_w, u_l`` that adadpo balances, where they are no log-ratios or log-probabilities.
        likelihood: whether the loss has a likelihood term on chosen besides its pair term.
        reads_rejected: whether the rejected response enters.
        vanishing: ``hyper -> whether a pull can be 0``: pairs whose pull is 0 are looked for then.
        changes: what it changes of a pair's pulls beside dpo, of CHANGES; advice to do so is not given to its runs.
        stage: whether it is a warm-up stage (--sft-objective) rather than an objective of preference training.
        when, dynamics, notes: for the reader: when to use it, how its pulls behave, and choices that we made.
    """

    name: str
    loss: Callable[[Terms, Options], Tensor]
    defaults: Mapping[str, Value]
    needs_reference: bool
    score: Score
    formula: str
    paper: str
    when: str
    dynamics: str
    notes: str = ""
    score_if: Mapping[str, Score] = field(default_factory=dict)
    terms: tuple[str, ...] = ()
    terms_if: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    columns: Mapping[str, Callable[[Terms, Options], Tensor | float]] = field(default_factory=dict)
    target: Callable[[Options], str] | None = None
    balance: Callable[[Terms], tuple[Tensor, Tensor]] | None = None
    likelihood: bool = False
    reads_rejected: bool = True
    vanishing: Callable[[Options], bool] = lambda hyper: True
    changes: tuple[str, ...] = ()
    stage: bool = False

    def needs(self, hyper: Mapping[str, Value]) -> tuple[str, ...]:
        """Names of the terms the loss reads besides a, b, n_w and n_l."""
        extra = tuple(t for switch, names in self.terms_if.items() if hyper[switch] for t in names)
        return (("r_w", "r_l") if self.needs_reference else ()) + self.terms + extra

    @property
    def options(self) -> dict[str, Value]:
        """Its hyper-parameters and those that every objective of preference training has, with their defaults."""
        return dict(self.defaults) if self.stage else {**self.defaults, **LIKELIHOOD}

    def reads(self, hyper: Mapping[str, Value]) -> tuple[str, ...]:
        """``needs``, and the term that a likelihood term averages over where it is given."""
        averaged = bool(hyper.get("nll")) and hyper["nll_mean"] == "batch"
        return self.needs(hyper) + (("batch_tokens",) if averaged else ())

    def changes_of(self, hyper: Mapping[str, Value]) -> tuple[str, ...]:
        """``changes``, and the length where what it compares is per token."""
        by_token = not self.score_of(hyper).unit.endswith("/sequence")
        return self.changes + (("length",) if by_token and "length" not in self.changes else ())

    def score_of(self, hyper: Mapping[str, Value]) -> Score:
        """What it compares of a response with these hyper-parameters."""
        return next((score for switch, score in self.score_if.items() if hyper[switch]), self.score)


class Measured(NamedTuple):
    """What a reweighting reads of a batch, ``[B]`` each: the objective's pulls, the norms of the gradients, and where
    it asks for them the norms in the metric of the optimizer's last step (None before there is one)."""

    d_w: Tensor
    d_l: Tensor
    norm_w: Tensor
    norm_l: Tensor
    metric_norm_w: Tensor | None = None
    metric_norm_l: Tensor | None = None


class Reweighted(NamedTuple):
    """New pulls of a batch, ``[B]`` each, and the columns that say how they came about."""

    chosen: Tensor
    rejected: Tensor
    columns: Columns


@dataclass(frozen=True)
class Reweighting:
    """New pulls once the gradient norms of a batch are known.

    Args:
        apply: ``(measured, options, memory) -> new pulls``.
        observe: ``measured -> [k]`` sums over the pairs, from which ``remember`` makes the memory for the next step.
        remember: ``(sums over all pairs of the step, options, memory) -> memory``.
        in_metric: ``options -> whether it reads the norms in the optimizer's metric``.
    """

    apply: Callable[[Measured, Options, Memory], Reweighted]
    observe: Callable[[Measured], Tensor] | None = None
    remember: Callable[[Tensor, Options, Memory], Memory] | None = None
    in_metric: Callable[[Options], bool] = lambda options: False


@dataclass(frozen=True)
class Shaping:
    """One shaping, and everything that a training loop must know of it.

    Args:
        apply: ``(objective, terms, options) -> (terms, columns)``, shapes the terms before the loss.
        reweight: in place of ``apply``: new pulls after the loss, once gradient norms are measured.
        defaults: options and their values where none are given.
        columns: names of the trace columns it fills.
        fits: the objectives of preference training that it composes with.
        needs: names of the terms it reads besides those of the objective.
        rows: name of the term whose gradients are recorded, where they are no longer the responses' own
            log-probabilities; its columns are then applied last.
        module: ``(hidden size, options) -> module`` that is learned on the head's inputs together with the policy.
        around: ``options -> whether the loss reaches the model other than through the recorded log-probabilities``.
        reference_needs: further terms that it reads where the objective has a reference.
        module_rate: ``options -> learning rate of its module`` at the peak of the schedule.
        penalty: ``(terms, columns, options, pull) -> [B]`` that is added to the loss; ``pull`` ``[B]`` is the mean size
            of the pair's two pulls.
        misfit: ``(objective, options) -> why the options do not fit the objective``; empty where they do.
        vanishing: ``options -> whether it can make a pull 0`` that the objective's would not be.
        changes: what it changes of a pair's pulls, of CHANGES.
        meets_conditions: ``options -> whether theory says that no pair lowers its chosen response by itself``.
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
    fits: Callable[[Objective], bool] = lambda objective: True
    needs: tuple[str, ...] = ()
    reweight: Reweighting | None = None
    rows: str = ""
    module: Callable[[int, Options], nn.Module] | None = None
    around: Callable[[Options], bool] = lambda options: False
    penalty: Callable[[Terms, Columns, Options, Tensor], Tensor] | None = None
    reference_needs: tuple[str, ...] = ()
    module_rate: Callable[[Options], float] = lambda options: 0.0
    misfit: Callable[[Objective, Options], str] = lambda objective, options: ""
    vanishing: Callable[[Options], bool] = lambda options: True
    changes: tuple[str, ...] = ()
    meets_conditions: Callable[[Options], bool] = lambda options: False


@dataclass(frozen=True)
class ChosenShaping:
    """A shaping with all its options."""

    shaping: Shaping
    options: Options

    def needs(self, objective: Objective) -> tuple[str, ...]:
        """Names of the terms that it reads besides those of this objective."""
        return self.shaping.needs + (self.shaping.reference_needs if objective.needs_reference else ())

    @property
    def name(self) -> str:
        """Name of the shaping."""
        return self.shaping.name
