"""The pairs of a trainer's batch: token ids with their masks, from what its collator made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dyn_probe.pairs import PairBatch


@dataclass(frozen=True, eq=False)
class TrainerBatch:
    """What a trainer's batch holds.

    Args:
        pairs: the ``B`` pairs that are recorded; None where there is none.
        rows: ``[2B]`` row of each response, chosen and then rejected; None where row i is response i.
        entries: ``[2B]`` place of each response in the trainer's vector of losses; None where that has one for a pair.
        size: numbers in the trainer's vector of losses.
    """

    pairs: PairBatch | None
    rows: Tensor | None = None
    entries: Tensor | None = None
    size: int = 0

    @staticmethod
    def of(pairs: PairBatch) -> TrainerBatch:
        """A batch of nothing but pairs, with a loss for each."""
        return TrainerBatch(pairs, size=pairs.pairs)

    @property
    def unpaired(self) -> int:
        """Responses without a partner."""
        return 0 if self.rows is None else self.size - len(self.rows)

    @property
    def share(self) -> float:
        """Of the numbers that the trainer's loss is the mean of, the share that is the pairs'."""
        return 1.0 if self.rows is None else len(self.rows) / self.size

    def of_pairs(self, losses: Tensor) -> Tensor:
        """``[B]`` loss of each pair from the trainer's vector; where that has one for each response, their mean."""
        return losses if self.entries is None else losses[self.entries].unflatten(0, (2, -1)).mean(0)

    def of_responses(self, values: Tensor) -> Tensor:
        """``[2B]`` from a number for each row."""
        return values if self.rows is None else values[self.rows]


def one_tensor(inputs: Mapping[str, Any]) -> TrainerBatch:
    """``DPOTrainer``'s: rows ``[chosen; rejected]`` in one tensor."""
    return _batch(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])


def joined_sides(inputs: Mapping[str, Any]) -> TrainerBatch:
    """``CPOTrainer``'s and ``ORPOTrainer``'s: each side in a tensor of its own, padded on the right, with labels."""
    ids = _joined(inputs["chosen_input_ids"], inputs["rejected_input_ids"], 0)
    mask = _joined(inputs["chosen_attention_mask"], inputs["rejected_attention_mask"], 0)
    labels = _joined(inputs["chosen_labels"], inputs["rejected_labels"], -100)
    return _batch(ids, mask, (labels != -100).to(mask.dtype))


def _joined(chosen: Tensor, rejected: Tensor, fill: int) -> Tensor:
    """``[2B, L]`` with the longer side's length."""
    length = max(chosen.shape[1], rejected.shape[1])
    return torch.cat([pad(side, (0, length - side.shape[1]), value=fill) for side in (chosen, rejected)])


def _batch(ids: Tensor, mask: Tensor, response: Tensor) -> TrainerBatch:
    """A response token at the very beginning of a row has nothing that predicts it and counts nowhere."""
    response = response.clone()
    response[:, 0] = 0
    return TrainerBatch.of(PairBatch(ids, mask, response))
