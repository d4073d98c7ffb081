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
    Score,
    Terms,
    TokenMask,
    objective,
    pair_loss,
    pair_scores,
    parse_shapings,
    resolve_hyper,
)
from dyn_probe.objectives.formulas import shift_of
from dyn_probe.objectives.options import parse
from dyn_probe.pairs import PairBatch, batch_logits, token_logps
from dyn_probe.train.config import RunConfig
from dyn_probe.train.terms import Batch, provide

if TYPE_CHECKING:
    from dyn_probe.train.run import Run

STAGES = tuple(name for name, row in OBJECTIVES.items() if row.stage)


@dataclass(frozen=True)
class Method:
    """Objective, hyper-parameters and shapings of a run, checked before anything is loaded or written."""

    name: str
    hyper: dict[str, Any]
    shapings: tuple[Any, ...]

    @staticmethod
    def of(config: RunConfig) -> Method:
        """The method a configuration asks for.

        Raises:
            BadInput: unknown names, hyper-parameters the objective does not have, or shapings that do not apply.
        """
        name, inline = parse(config.objective)
        row = objective(name)
        if row.name in STAGES:
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
        return Method(row.name, resolve_hyper(row, given), parse_shapings(config.shaping, row))

    def shaping(self, name: str) -> Any | None:
        """The chosen shaping of that name, None if there is none."""
        return next((one for one in self.shapings if one.name == name), None)

    @property
    def score(self) -> Score:
        """What the objective compares of a response."""
        return objective(self.name).score_of(self.hyper)

    @property
    def target(self) -> str:
        """What the loss aims at, in words, where a pull reverses once that is passed; else empty."""
        target = objective(self.name).target
        return "" if target is None else target(self.hyper)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of all terms that objective and shapings read."""
        shaped = (name for one in self.shapings for name in one.shaping.needs)
        rows = ("masked_logps",) if self.masked else ()
        return tuple(dict.fromkeys([*objective(self.name).needs(self.hyper), *shaped, *rows]))

    @property
    def needs_reference(self) -> bool:
        return objective(self.name).needs_reference

    @property
    def needs_live_reference(self) -> bool:
        """KTO asks the reference about mismatched responses, the token mask about single tokens."""
        return self.name == "kto" or self.shaping("token-mask") is not None

    @property
    def normalised(self) -> bool:
        """Whether updates are pairwise-normalised: gradients are reweighted once their norms are known."""
        return self.shaping("pairwise-normalised") is not None

    @property
    def masked(self) -> bool:
        """Whether a token mask stands between log-probabilities and loss."""
        return self.shaping("token-mask") is not None

    def coefficients(self, terms: Terms) -> dict[str, Tensor]:
        """``[B]`` columns of the objective's coefficients that are no constants."""
        own: dict[str, Any] = {}
        if self.name == "kto":
            own["kl"] = terms.need("kl")
        if self.name == "dpo_shift":
            own["shift"] = shift_of(self.hyper, terms.progress or 0.0)
        return {name: torch.full_like(terms.a.detach(), float(value)) for name, value in own.items()}

    @property
    def around_logps(self) -> bool:
        """Whether the loss reaches the model other than through the recorded log-probabilities."""
        mask = self.shaping("token-mask")
        return mask is not None and bool(mask.options["through_hidden"])


def make_token_mask(method: Method, model: nn.Module) -> TokenMask | None:
    """The learnable read-out of the ``token-mask`` shaping, on the model's device and dtype."""
    chosen = method.shaping("token-mask")
    if chosen is None:
        return None
    options = {k: v for k, v in chosen.options.items() if k in ("slope", "threshold", "through_hidden")}
    first = next(model.parameters())
    size = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    return TokenMask(size, **options).to(first.device, first.dtype)


@dataclass(frozen=True, eq=False)
class Forward:
    """A batch after its forward: ``[2B]`` log-probabilities and everything the objective may read.

    ``rows`` are the log-probabilities whose gradients are recorded: with a token mask, the masked ones.
    """

    logps: Tensor
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
            logits, hidden = _logits_and_hidden(run.module, run.setup.model, rows)
        tokens = token_logps(logits, rows)
    found = provide(Batch(run, rows, whole, step, tokens, hidden), method.terms)
    expected = None if run.reference is None else run.reference.rows(rows).to(tokens.dtype)
    logps = tokens.sum(1)
    return Forward(logps, found.get("masked_logps", logps), expected, found)


def _logits_and_hidden(model: nn.Module, inner: nn.Module, batch: PairBatch) -> tuple[Tensor, Tensor]:
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
