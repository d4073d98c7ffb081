"""The pairs of a trainer's batch: token ids with their masks, from what its collator made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dyn_probe.pairs import PairBatch


def one_tensor(inputs: Mapping[str, Any]) -> PairBatch:
    """``DPOTrainer``'s: rows ``[chosen; rejected]`` in one tensor."""
    return _batch(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])


def joined_sides(inputs: Mapping[str, Any]) -> PairBatch:
    """``CPOTrainer``'s and ``ORPOTrainer``'s: each side in a tensor of its own, padded on the right, with labels."""
    ids = _joined(inputs["chosen_input_ids"], inputs["rejected_input_ids"], 0)
    mask = _joined(inputs["chosen_attention_mask"], inputs["rejected_attention_mask"], 0)
    labels = _joined(inputs["chosen_labels"], inputs["rejected_labels"], -100)
    return _batch(ids, mask, (labels != -100).to(mask.dtype))


def _joined(chosen: Tensor, rejected: Tensor, fill: int) -> Tensor:
    """``[2B, L]`` with the longer side's length."""
    length = max(chosen.shape[1], rejected.shape[1])
    return torch.cat([pad(side, (0, length - side.shape[1]), value=fill) for side in (chosen, rejected)])


def _batch(ids: Tensor, mask: Tensor, response: Tensor) -> PairBatch:
    """A response token at the very beginning of a row has nothing that predicts it and counts nowhere."""
    response = response.clone()
    response[:, 0] = 0
    return PairBatch(ids, mask, response)
