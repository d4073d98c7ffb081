"""Pairs among labelled rows: ``KTOTrainer`` trains on single responses, and two of one prompt in a batch are a pair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dyn_probe.attach.collated import TrainerBatch
from dyn_probe.pairs import PairBatch

LOOKED_AT = 4096
"""Rows of a data set that are looked at for pairs before training."""
Prompt = tuple[int, ...]


def labelled_rows(inputs: Mapping[str, Any]) -> TrainerBatch:
    """``KTOTrainer``'s batch: a row for each response, with a label. The k-th chosen and the k-th rejected response to
    the very same prompt tokens are a pair; the others have no partner."""
    ids, attention, response = (inputs[name] for name in ("input_ids", "attention_mask", "completion_mask"))
    labels = [bool(label) for label in inputs["label"].tolist()]
    whole = (response[:, 1:] != 0).any(1).tolist()  # a response that was cut off altogether has no log-probability
    prompts = [
        tuple(row[(mask != 0) & (said == 0)].tolist())
        for row, mask, said in zip(ids.cpu(), attention.cpu(), response.cpu(), strict=True)
    ]
    found = [pair for pair in pairs_among(prompts, labels) if whole[pair[0]] and whole[pair[1]]]
    rows = torch.tensor([chosen for chosen, _ in found] + [rejected for _, rejected in found], device=ids.device)
    entries = _places_in_losses(labels)
    return TrainerBatch(
        _batch(ids, attention, response, rows) if found else None,
        rows=rows.long(),
        entries=torch.tensor([entries[i] for i in rows.tolist()], device=ids.device).long(),
        size=len(labels),
    )


def pairs_among(prompts: Sequence[Prompt], labels: Sequence[bool]) -> list[tuple[int, int]]:
    """``(chosen, rejected)`` row numbers of the pairs, in the order of their chosen rows.

    Args:
        prompts: token ids of each row's prompt.
        labels: True for a chosen response.
    """
    sides: dict[Prompt, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for row, (prompt, label) in enumerate(zip(prompts, labels, strict=True)):
        sides[prompt][0 if label else 1].append(row)
    return sorted(pair for chosen, rejected in sides.values() for pair in zip(chosen, rejected, strict=False))


def _batch(ids: Tensor, attention: Tensor, response: Tensor, rows: Tensor) -> PairBatch:
    """The batch as the model is called with it; what belongs to no pair is in no segment."""
    number = ids.new_full((len(ids), 1), -1)
    number[rows, 0] = torch.arange(len(rows), device=ids.device)
    paired = (number >= 0).to(response.dtype)
    said = response * paired
    said[:, 0] = 0
    return PairBatch(ids, attention, said, torch.where(attention != 0, number, -1))


def _places_in_losses(labels: Sequence[bool]) -> list[int]:
    """Where each row's loss is in the trainer's vector: chosen rows first, then rejected ones, each in order."""
    order = [i for wanted in (True, False) for i, label in enumerate(labels) if label is wanted]
    places = {row: place for place, row in enumerate(order)}
    return [places[row] for row in range(len(labels))]


def has_no_pairs(trainer: Any) -> bool:
    """Whether its training data hold no pair that could meet in a batch: read off the first rows, where they can be
    read without drawing random numbers. Rows in a fixed order meet where they are in one batch; others anywhere."""
    args = trainer.args
    data: Any = getattr(trainer, "train_dataset", None)
    if not {"prompt_ids", "label"} <= set(getattr(data, "column_names", None) or ()) or not hasattr(data, "select"):
        return False
    first = data.select(range(min(len(data), LOOKED_AT))).with_format(None)
    prompts, labels = [tuple(ids) for ids in first["prompt_ids"]], [bool(label) for label in first["label"]]
    fixed = getattr(args, "train_sampling_strategy", "") == "sequential"
    size = args.per_device_train_batch_size if fixed else max(1, len(labels))
    batches = range(0, len(labels), size)
    return not any(pairs_among(prompts[i : i + size], labels[i : i + size]) for i in batches)
