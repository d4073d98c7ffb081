"""The pairs of a trainer's batch as text."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dyn_probe.data.token_text import decoded, decoded_from
from dyn_probe.pairs import PairBatch


class PairTexts:
    """Rows of the ``examples`` table, each pair once.

    Args:
        tokenizer: of the trainer, or a processor that has one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self._known: set[str] = set()

    def rows(self, batch: PairBatch) -> list[dict[str, str]]:
        """Those of the batch's pairs that were not seen before."""
        found = []
        for i, pair in enumerate(batch.ids):
            if pair not in self._known:
                self._known.add(pair)
                prompt, chosen = self._texts(batch, i)
                _, rejected = self._texts(batch, i + batch.pairs)
                found.append({"pair_id": pair, "prompt": prompt, "chosen": chosen, "rejected": rejected})
        return found

    def _texts(self, batch: PairBatch, row: int) -> tuple[str, str]:
        """Prompt and response, without the tokens that begin and end every row."""
        kept: Tensor = batch.attention_mask[row].bool()
        ids, said = batch.input_ids[row][kept].tolist(), batch.response_mask[row][kept].tolist()
        start = said.index(1)
        begin = int(start > 0 and ids[0] == self.tokenizer.bos_token_id)
        end = len(ids) - int(ids[-1] == self.tokenizer.eos_token_id and len(ids) - 1 > start)
        return decoded(self.tokenizer, ids[begin:start]), decoded_from(self.tokenizer, ids[:end], start)
