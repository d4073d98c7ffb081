"""Encoded pairs as a padded ``PairBatch``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dyn_probe.data.encoding import EncodedPair, EncodedRow
from dyn_probe.errors import BadInput
from dyn_probe.pairs import PairBatch

PADDING_SIDES = ("right", "left")


def collate(pairs: Sequence[EncodedPair], pad_id: int = 0, side: str = "right") -> PairBatch:
    """``B`` pairs as a ``PairBatch`` of ``2B`` rows, all chosen and then all rejected, padded on one side."""
    if side not in PADDING_SIDES:
        raise BadInput(f"padding side must be {' or '.join(PADDING_SIDES)}; got {side!r}")
    return PairBatch(*pad([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], pad_id, side))


def pad(rows: Sequence[EncodedRow], pad_id: int = 0, side: str = "right") -> tuple[torch.Tensor, ...]:
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
