"""Supervised stages before preference training: language modelling for the built-in model, then SFT."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dyn_probe.data.collating import collate
from dyn_probe.data.encoding import EncodedPair, encode_pairs
from dyn_probe.data.generated.answers import corpus
from dyn_probe.data.records import PreferencePair
from dyn_probe.errors import Diverged
from dyn_probe.objectives import OBJECTIVES, Terms, pair_loss
from dyn_probe.pairs import PairBatch, sequence_logps
from dyn_probe.train.batches import step_order
from dyn_probe.train.rate_schedule import set_rate
from dyn_probe.train.setup import Setup

BATCH = 16
"""Pairs per step of these stages (fewer where there are fewer); a forward takes at most as many rows as the run's."""


def reading_pairs(tokenizer: object, count: int = 2000, seed: int = 0) -> list[EncodedPair]:
    """Correct answers in many wordings as chosen, for the built-in model's language modelling (rejected is unused)."""
    texts = [PreferencePair(prompt, answer, answer + " ", "reading") for prompt, answer in corpus(count, seed)]
    return encode_pairs(texts, tokenizer)[0]


def supervised_stage(
    setup: Setup,
    pairs: Sequence[EncodedPair],
    objective: str,
    steps: int,
    lr: float,
    progress: Callable[[float], None],
) -> float:
    """Train ``steps`` steps with AdamW and a falling learning rate.

    Args:
        objective: a warm-up stage.
        progress: called with the loss after every step.

    Returns:
        The last loss (nats/token).
    """
    trained = [p for p in setup.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    size, value = min(BATCH, len(pairs)), 0.0
    own = max(1, setup.config.batch_size // setup.processes.count)  # every process does the whole warm-up
    part = own * (1 if OBJECTIVES[objective].reads_rejected else 2)
    for step in range(steps):
        set_rate(optimizer, lr * (1 - step / steps))
        chosen = [pairs[i] for i in step_order(len(pairs), size, step, setup.config.seed)]
        optimizer.zero_grad(set_to_none=True)
        value = sum(_backward(setup, chosen[i : i + part], objective, size) for i in range(0, size, part))
        if not value < float("inf"):
            raise Diverged(f"the supervised warm-up diverged at step {step} (loss {value}); lower --sft-lr (now {lr})")
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        progress(value)
    optimizer.zero_grad(set_to_none=True)
    return value


def _backward(setup: Setup, pairs: Sequence[EncodedPair], objective: str, size: int) -> float:
    """Add the gradient of these pairs' part in the mean over ``size``; returns that part of the loss."""
    batch = collate(pairs, setup.pad_id).to(setup.device)
    with setup.autocast():
        logps = rows_of(setup.model, batch, objective)
    loss = pair_loss(objective, Terms.from_rows(logps, batch.lengths))[0].mean() * (len(pairs) / size)
    loss.backward()
    return float(loss.detach())


def rows_of(model: nn.Module, batch: PairBatch, objective: str) -> Tensor:
    """``[2B]`` log-probabilities; where only chosen is trained, from a forward of the chosen rows alone."""
    if OBJECTIVES[objective].reads_rejected:
        return sequence_logps(model, batch)
    half = batch.pairs
    one = _Half(batch.input_ids[:half], batch.attention_mask[:half], batch.response_mask[:half])
    return sequence_logps(model, one).repeat(2)


class _Half(PairBatch):
    """Rows of one side, without PairBatch's check that there are two."""

    def __post_init__(self) -> None:
        return None
