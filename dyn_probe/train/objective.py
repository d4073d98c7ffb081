"""One batch under the configured objective and shapings: terms, losses, and how the backward is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dyn_probe.data.collating import pad
from dyn_probe.data.encoding import EncodedPair, Row
from dyn_probe.errors import BadInput
from dyn_probe.objectives import (
    OBJECTIVES,
    Terms,
    TokenMask,
    kl_estimate,
    masked_logps,
    mismatched_rows,
    objective,
    pair_loss,
    parse_shapings,
    resolve_hyper,
)
from dyn_probe.objectives.formulas import shift_of
from dyn_probe.objectives.options import parse
from dyn_probe.pairs import PairBatch, batch_logits, token_logps
from dyn_probe.train.config import RunConfig
from dyn_probe.train.reference import Reference

if TYPE_CHECKING:
    from dyn_probe.train.setup import Setup

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


def forward(
    model: nn.Module,
    batch: PairBatch,
    whole: list[EncodedPair],
    setup: Setup,
    reference: Reference | None,
    mask: TokenMask | None,
    progress: float,
) -> Forward:
    """The policy's forward with gradients, and the reference's values.

    Args:
        model: the module to call.
        whole: the pairs of the batch over all processes.
        progress: share of training done.
    """
    hidden: list[Tensor] = []
    method, autocast = setup.method, setup.autocast
    with autocast():
        if mask is None:
            tokens = token_logps(batch_logits(model, batch), batch)
        else:
            tokens = token_logps(_logits_and_hidden(model, setup.model, batch, hidden), batch)
    more: dict[str, Any] = {"progress": progress, "token_logps": tokens, "response_mask": batch.response_mask}
    expected = None
    logps = rows = tokens.sum(1)
    if method.needs_reference and reference is not None:
        if mask is not None:
            more["ref_token_logps"] = reference.tokens(batch)
            more["token_mask"] = mask(hidden[0]).to(tokens.dtype)
            more["masked_logps"] = rows = masked_logps(more["token_mask"], tokens)
        expected = reference.rows(batch).to(tokens.dtype)
    if method.name == "kto" and reference is not None:
        more["kl"] = _kl(model, whole, reference, setup)
    return Forward(logps, rows, expected, more)


def _logits_and_hidden(model: nn.Module, inner: nn.Module, batch: PairBatch, hidden: list[Tensor]) -> Tensor:
    """Logits, and the head's input caught on its way (``[2B, L', d]``, put back to ``[2B, L, d]``)."""
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
    hidden[0] = torch.cat([state.new_zeros(state.shape[0], missing, state.shape[2]), state], 1)
    return logits


@torch.no_grad()
def _kl(model: nn.Module, whole: list[EncodedPair], reference: Reference, setup: Setup) -> Tensor:
    """KTO's reference point: prompts of the whole batch with other prompts' responses; every process does its share."""
    rows = [pair.chosen for pair in whole] + [pair.rejected for pair in whole]
    partners, most = mismatched_rows(len(whole)), setup.max_length
    mixed = [
        Row((*row.ids[: row.start], *rows[j].ids[rows[j].start :])[:most], row.start)
        for row, j in zip(rows, partners, strict=True)
    ]
    own = [*setup.processes.share(mixed[: len(whole)]), *setup.processes.share(mixed[len(whole) :])]
    batch = PairBatch(*pad(own, setup.pad_id)).to(setup.device)
    with setup.autocast():
        ours = token_logps(batch_logits(model, batch), batch).sum(1)
    theirs = reference.rows(batch).to(ours.dtype)
    return kl_estimate(setup.processes.stacked(ours), setup.processes.stacked(theirs))


def terms_of(out: Forward, batch: PairBatch) -> Terms:
    """What the objective and its shapings read, live in the log-probabilities."""
    return Terms.from_rows(out.logps, batch.lengths, out.reference, **out.more)


def losses_of(method: Method, terms: Terms) -> tuple[Tensor, dict[str, Tensor]]:
    """``ℓ [B]``, and every coefficient that shaped them as a column: the shapings' and the objective's own."""
    losses, columns = pair_loss(method.name, terms, method.hyper, method.shapings)
    return losses, {**columns, **method.coefficients(terms)}
