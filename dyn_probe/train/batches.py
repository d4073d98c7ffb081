"""Batches: padding to ``PairBatch``, and which pairs a step trains on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

import torch

from dyn_probe.errors import BadInput
from dyn_probe.pairs import PairBatch
from dyn_probe.train.encode import EncodedPair, Row

PADDING_SIDES = ("right", "left")


def collate(pairs: Sequence[EncodedPair], pad_id: int = 0, side: str = "right") -> PairBatch:
    """``B`` pairs as a ``PairBatch`` of ``2B`` rows, all chosen and then all rejected, padded on one side."""
    if side not in PADDING_SIDES:
        raise BadInput(f"padding side must be {' or '.join(PADDING_SIDES)}; got {side!r}")
    return PairBatch(*pad([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], pad_id, side))


def pad(rows: Sequence[Row], pad_id: int = 0, side: str = "right") -> tuple[torch.Tensor, ...]:
    """``input_ids``, ``attention_mask`` and ``response_mask``, each ``[rows, L]``."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    attention, response = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        begin = 0 if side == "right" else length - len(row.ids)
        end = begin + len(row.ids)
        ids[i, begin:end] = torch.tensor(row.ids)
        attention[i, begin:end] = 1
        response[i, begin + row.start : end] = 1
    return ids, attention, response


def step_order(pairs: int, per_step: int, step: int, seed: int) -> list[int]:
    """Numbers of the pairs that ``step`` trains on: a function of its arguments alone, so a resumed run sees the
    same batches.

    Every epoch goes through the pairs in a new order drawn from ``seed``; no pair occurs twice in a step, and the
    remainder of an epoch that does not fill a step is dropped.

    Raises:
        BadInput: there are fewer pairs than a step needs.
    """
    if not 0 < per_step <= pairs:
        raise BadInput(
            f"a step takes {per_step} pairs (batch size × accumulation), but only {pairs} are usable; "
            f"lower --batch-size or --gradient-accumulation, or add data"
        )
    epoch, place = divmod(step, pairs // per_step)
    return list(_epoch_order(pairs, epoch, seed)[place * per_step : (place + 1) * per_step])


@lru_cache(maxsize=4)
def _epoch_order(pairs: int, epoch: int, seed: int) -> tuple[int, ...]:
    """All pairs in the order of one epoch."""
    order = list(range(pairs))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return tuple(order)
