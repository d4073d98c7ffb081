"""What an objective or a shaping may read of a batch beside log-probabilities and lengths: a function for each term.

A method names the terms that it needs in its row (``Objective.terms``, ``Shaping.needs``); the loop computes those and
no others. A new term owes a line in ``objectives/pair_terms.py``, which says what it is and what it asks of the loop,
and a function with its row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dyn_probe.data.collating import pad
from dyn_probe.data.encoding import EncodedPair, EncodedRow
from dyn_probe.data.records import Skipped
from dyn_probe.errors import BadInput
from dyn_probe.objectives import kl_estimate, masked_logps, mismatched_rows
from dyn_probe.pairs import PairBatch, batch_logits, token_logps
from dyn_probe.train.batches import step_order
from dyn_probe.train.reference_model import Reference

if TYPE_CHECKING:
    from dyn_probe.train.objective import Method
    from dyn_probe.train.run import Run


@dataclass(eq=False)
class Batch:
    """A batch on its way to the loss, as the functions of PROVIDERS see it.

    Args:
        whole: the pairs of the batch over all processes.
        tokens: ``[2B, L]`` log-probabilities of the response tokens, with their graph.
        hidden: ``[2B, L, d]`` inputs of the head, where the method learns a module on them.
        found: the terms so far, in the order of PROVIDERS.
    """

    run: Run
    rows: PairBatch
    whole: Sequence[EncodedPair]
    step: int
    tokens: Tensor
    hidden: Tensor | None = None
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> Reference:
        """The reference policy."""
        assert self.run.reference is not None, "a method whose terms read the reference declares needs_reference"
        return self.run.reference

    @property
    def own(self) -> list[EncodedPair]:
        """This process's pairs, in the order of the rows."""
        return self.run.setup.processes.share(self.whole)


def provide(batch: Batch, names: Sequence[str]) -> dict[str, Any]:
    """The terms called ``names``, computed."""
    for name, provider in PROVIDERS.items():
        if name in names:
            batch.found[name] = provider(batch)
    return batch.found


def progress(batch: Batch) -> float:
    """Share of training done, 0 at the first step."""
    return batch.step / batch.run.config.steps


@torch.no_grad()
def kl(batch: Batch) -> Tensor:
    """KTO's reference point: prompts of the whole batch with other prompts' responses; every process does its share."""
    setup, whole = batch.run.setup, batch.whole
    rows = [pair.chosen for pair in whole] + [pair.rejected for pair in whole]
    partners, most = mismatched_rows(len(whole)), setup.max_length
    mixed = [
        EncodedRow((*row.ids[: row.start], *rows[j].ids[rows[j].start :])[:most], row.start)
        for row, j in zip(rows, partners, strict=True)
    ]
    own = [*setup.processes.share(mixed[: len(whole)]), *setup.processes.share(mixed[len(whole) :])]
    mismatched = PairBatch(*pad(own, setup.pad_id)).to(setup.device)
    with setup.autocast():
        ours = token_logps(batch_logits(batch.run.module, mismatched), mismatched).sum(1)
    theirs = batch.reference.rows(mismatched).to(ours.dtype)
    return kl_estimate(setup.processes.stacked(ours), setup.processes.stacked(theirs))


def batch_tokens(batch: Batch) -> float:
    """Mean number of tokens of the chosen responses over all pairs of the optimizer step, however it is cut into
    micro-batches and processes."""
    setup, config = batch.run.setup, batch.run.config
    order = step_order(len(setup.pairs), config.pairs_per_step, batch.step, config.seed)
    chosen = [setup.pairs[i].chosen for i in order]
    return sum(len(row.ids) - row.start for row in chosen) / len(chosen)


def win_w(batch: Batch) -> Tensor:
    """``[B]`` P of every pair."""
    return batch.tokens.new_tensor([win_probability(pair) for pair in batch.own])


def win_l(batch: Batch) -> Tensor:
    """``[B]`` 1 − P of every pair."""
    return 1 - win_w(batch)


def ref_token_logps(batch: Batch) -> Tensor:
    """``[2B, L]`` from the live reference."""
    return batch.reference.tokens(batch.rows)


def token_mask(batch: Batch) -> Tensor:
    """``[2B, L]`` from the learned read-out of the hidden states."""
    assert batch.run.mask is not None and batch.hidden is not None
    mask: Tensor = batch.run.mask(batch.hidden, progress(batch))
    return mask.to(batch.tokens.dtype)


PROVIDERS: dict[str, Callable[[Batch], Any]] = {
    "token_logps": lambda batch: batch.tokens,
    "response_mask": lambda batch: batch.rows.response_mask,
    "progress": progress,
    "batch_tokens": batch_tokens,
    "kl": kl,
    "win_w": win_w,
    "win_l": win_l,
    "ref_token_logps": ref_token_logps,
    "token_mask": token_mask,
    "masked_logps": lambda batch: masked_logps(batch.found["token_mask"], batch.tokens),
}
"""Term → how the loop computes it; a term may read those above it. ``r_w`` and ``r_l`` come from the reference."""


def win_probability(pair: EncodedPair) -> float | None:
    """Probability that chosen beats rejected, as the data has it; None where it has none."""
    known = getattr(pair, "win_probability", None)
    return getattr(pair.text, "win_probability", None) if known is None else known


@dataclass(frozen=True)
class Field:
    """A number from 0 to 1 that the data gives each pair: its name, what it is, and how it is read."""

    name: str
    meaning: str
    read: Callable[[EncodedPair], float | None]


_WIN = Field("win_probability", "the probability that chosen beats rejected", win_probability)

FROM_DATA: Mapping[str, Field] = {"win_w": _WIN, "win_l": _WIN}
"""Term → the field of the data that it is made from."""


def with_data(pairs: Sequence[EncodedPair], method: Method, data: str) -> tuple[list[EncodedPair], list[Skipped]]:
    """The pairs that have what the method reads from the data, and those that do not.

    Raises:
        BadInput: no pair has it.
    """
    fields = dict.fromkeys(FROM_DATA[name] for name in method.terms if name in FROM_DATA)
    reasons = [next((why for field in fields if (why := _lack(field.name, field.read(pair)))), "") for pair in pairs]
    if pairs and all(reasons):
        what = ", ".join(f"{field.name} ({field.meaning}, from 0 to 1)" for field in fields)
        raise BadInput(
            f"{method.name}{_switched(method)} reads a {what} of every pair, and no pair of {data} has one that can be "
            f"used (the first: {reasons[0]}); give the data that column, or leave the option off"
        )
    kept = [pair for pair, reason in zip(pairs, reasons, strict=True) if not reason]
    lost = zip(pairs, reasons, strict=True)
    return kept, [Skipped(pair.text.source, f"{reason}, which {method.name} reads") for pair, reason in lost if reason]


def _switched(method: Method) -> str:
    """The switches by which the method asks for the data's fields: `` with soft=true``."""
    asked = method.objective.terms_if.items()
    on = [switch for switch, names in asked if method.hyper[switch] and any(name in FROM_DATA for name in names)]
    return f" with {', '.join(f'{switch}=true' for switch in on)}" if on else ""


def _lack(name: str, value: float | None) -> str:
    """What is wrong with a pair's value; empty where nothing is."""
    if value is None:
        return f"no {name}"
    return "" if 0 <= value <= 1 else f"{name} {value:g} is not from 0 to 1"
