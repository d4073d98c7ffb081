"""One batch under the configured objective and shapings: terms, losses, and how the backward is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dyn_probe.data.encoding import EncodedPair
from dyn_probe.errors import BadInput
from dyn_probe.objectives import (
    OBJECTIVES,
    STAGES,
    ChosenShaping,
    Measured,
    Objective,
    Reweighted,
    Score,
    Terms,
    objective,
    pair_loss,
    pair_scores,
    parse_shapings,
    resolve_hyper,
)
from dyn_probe.objectives.options import parse
from dyn_probe.objectives.pair_terms import TERMS
from dyn_probe.pairs import PairBatch, batch_logits, token_logps
from dyn_probe.train.batch_terms import Batch, provide
from dyn_probe.train.options.config import RunConfig

if TYPE_CHECKING:
    from dyn_probe.train.run import Run


@dataclass(frozen=True)
class Method:
    """Objective, hyper-parameters and shapings of a run, checked before anything is loaded or written, and what they
    ask of the loop: all of it from their rows, so that nothing here knows a method by its name.

    Args:
        terms: names of all terms that objective and shapings read, and of the rows that are recorded.
        live_reference: whether the reference policy is asked in every step.
        reweighting: the shaping that gives new pulls once gradient norms are known.
        learned: the shaping whose module is learned together with the policy.
        rows: name of the term whose gradients are recorded; empty where it is the responses' own log-probabilities.
        around: whether the loss reaches the model other than through the recorded log-probabilities.
        vanishing: whether a pull can be 0.
    """

    objective: Objective
    hyper: dict[str, Any]
    shapings: tuple[ChosenShaping, ...]
    terms: tuple[str, ...]
    live_reference: bool
    reweighting: ChosenShaping | None
    learned: ChosenShaping | None
    rows: str
    around: bool
    vanishing: bool

    @staticmethod
    def of(config: RunConfig) -> Method:
        """The method a configuration asks for.

        Raises:
            BadInput: unknown names, hyper-parameters the objective does not have, or shapings that do not apply.
        """
        name, inline = parse(config.objective)
        row = objective(name)
        if row.stage:
            trained = ", ".join(n for n in OBJECTIVES if n not in STAGES)
            raise BadInput(f"{row.name} is a warm-up stage (--sft-steps, --sft-objective); objectives: {trained}")
        ways = (inline, config.hyper, {} if config.beta is None else {"beta": config.beta})
        given = {key: value for way in ways for key, value in way.items()}
        twice = [key for key in given if sum(key in way for way in ways) > 1]
        if twice:
            raise BadInput(
                f"{', '.join(twice)} is given more than once: in --objective NAME:KEY=VALUE, by --set, or by --beta; "
                "write it in one place"
            )
        hyper = resolve_hyper(row, given)
        return Method.resolved(row, hyper, parse_shapings(config.shaping, row, hyper))

    @staticmethod
    def resolved(row: Objective, hyper: dict[str, Any], shapings: tuple[ChosenShaping, ...]) -> Method:
        """The method of these rows, and what their declarations come to."""
        rows = next((one.shaping.rows for one in shapings if one.shaping.rows), "")
        shaped = [name for one in shapings for name in one.needs(row)]
        terms = tuple(dict.fromkeys([*row.reads(hyper), *shaped, *([rows] if rows else [])]))
        return Method(
            row, hyper, shapings, terms,
            live_reference=any(TERMS[name].live_reference for name in terms),
            reweighting=next((one for one in shapings if one.shaping.reweight is not None), None),
            learned=next((one for one in shapings if one.shaping.module is not None), None),
            rows=rows,
            around=any(one.shaping.around(one.options) for one in shapings),
            vanishing=row.vanishing(hyper) or any(one.shaping.vanishing(one.options) for one in shapings),
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Name of the objective."""
        return self.objective.name

    @property
    def score(self) -> Score:
        """What the objective compares of a response."""
        return self.objective.score_of(self.hyper)

    @property
    def target(self) -> str:
        """What the loss aims at, in words, where a pull reverses once that is passed; else empty."""
        return "" if self.objective.target is None else self.objective.target(self.hyper)

    def coefficients(self, terms: Terms) -> dict[str, Tensor]:
        """``[B]`` columns of the objective's coefficients that are no constants."""
        own = {name: value(terms, self.hyper) for name, value in self.objective.columns.items()}
        return {name: torch.full_like(terms.a.detach(), float(value)) for name, value in own.items()}


def learned_module(method: Method, model: nn.Module) -> nn.Module | None:
    """The module that a shaping learns on the head's inputs, on the model's device and dtype."""
    chosen = method.learned
    if chosen is None or chosen.shaping.module is None:
        return None
    first = next(model.parameters())
    size = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    return chosen.shaping.module(size, chosen.options).to(first.device, first.dtype)


@dataclass(frozen=True, eq=False)
class Forward:
    """A batch after its forward: ``[2B]`` log-probabilities and everything the objective may read.

    ``tokens`` ``[2B, L]`` are those of the response tokens, ``rows`` the log-probabilities whose gradients are recorded
    (``Method.rows``).
    """

    logps: Tensor
    tokens: Tensor
    rows: Tensor
    reference: Tensor | None
    more: dict[str, Any]


def forward(run: Run, rows: PairBatch, whole: Sequence[EncodedPair], step: int) -> Forward:
    """The policy's forward with gradients, and everything that the method reads beside it.

    Args:
        rows: this process's part of the batch.
        whole: the pairs of the batch over all processes.
    """
    method, hidden = run.setup.method, None
    with run.setup.autocast():
        if run.mask is None:
            logits = batch_logits(run.module, rows)
        else:
            logits, hidden = logits_and_hidden(run.module, run.setup.model, rows)
        tokens = token_logps(logits, rows)
    found = provide(Batch(run, rows, whole, step, tokens, hidden), method.terms)
    expected = None if run.reference is None else run.reference.rows(rows).to(tokens.dtype)
    logps = tokens.sum(1)
    return Forward(logps, tokens, found.get(method.rows, logps), expected, found)


def logits_and_hidden(model: nn.Module, inner: nn.Module, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Logits, and the head's input caught on its way (``[2B, L', d]``, put back to ``[2B, L, d]``)."""
    hidden: list[Tensor] = []
    head = inner.get_output_embeddings()  # type: ignore[operator]

    def catch(_: nn.Module, args: tuple[Any, ...]) -> None:
        hidden.append(args[0])

    handle = head.register_forward_pre_hook(catch)
    try:
        logits = batch_logits(model, batch)
    finally:
        handle.remove()
    state = hidden[0]
    missing = batch.input_ids.shape[1] - state.shape[1]
    return logits, torch.cat([state.new_zeros(state.shape[0], missing, state.shape[2]), state], 1)


def terms_of(out: Forward, batch: PairBatch) -> Terms:
    """What the objective and its shapings read, live in the log-probabilities."""
    return Terms.from_rows(out.logps, batch.lengths, out.reference, **out.more)


def losses_of(method: Method, terms: Terms) -> tuple[Tensor, dict[str, Tensor]]:
    """``ℓ [B]``, and columns: the scores, and every coefficient that shaped them, the shapings' and the objective's."""
    losses, columns = pair_loss(method.name, terms, method.hyper, method.shapings)
    return losses, {**columns, **method.coefficients(terms), **pair_scores(method.name, terms, method.hyper)}


def reweighted(run: Run, logps: Tensor, measured: Measured) -> Reweighted:
    """The pulls of the update, from the objective's own and the measured norms.

    Args:
        logps: ``[2B]`` log-probabilities that were measured.
    """
    chosen = run.setup.method.reweighting
    assert chosen is not None and chosen.shaping.reweight is not None
    if chosen.shaping.reweight.in_metric(chosen.options) and (found := run.probe.metric_norms(logps)) is not None:
        measured = measured._replace(metric_norm_w=found[0].to(measured.d_w), metric_norm_l=found[1].to(measured.d_l))
    if chosen.shaping.reweight.observe is not None:
        run.observed.append(chosen.shaping.reweight.observe(measured))
    return chosen.shaping.reweight.apply(measured, chosen.options, run.memory)


def remember(run: Run) -> None:
    """At the end of a step: what the reweighting keeps of all its pairs, those of other processes too."""
    chosen = run.setup.method.reweighting
    row = None if chosen is None else chosen.shaping.reweight
    if chosen is None or row is None or row.remember is None or not run.observed:
        return
    sums = run.setup.processes.summed(torch.stack(run.observed).sum(0))
    run.memory, run.observed = row.remember(sums, chosen.options, run.memory), []
