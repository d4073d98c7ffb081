"""The table ``final``: some of the pairs that were trained on, evaluated again with the weights that training left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dyn_probe.pairs import PairBatch

NAMES = ("logp_chosen", "logp_rejected", "len_chosen", "len_rejected")


class FinalPairs:
    """Pairs that are evaluated at the end.

    Args:
        most: how many.
        earlier: ids of pairs that an earlier end of this training has measured.
    """

    def __init__(self, most: int, earlier: Sequence[str] = ()) -> None:
        self.most, self.earlier = most, earlier
        self._kept: list[PairBatch] = []

    def keep(self, batch: PairBatch) -> bool:
        """Whether the batch has pairs that are evaluated at the end, and were not known yet."""
        known = {pair for one in self._kept for pair in one.ids}
        new = [i for i, pair in enumerate(batch.ids) if pair not in known][: self.most - len(known)]
        if new:
            self._kept.append(batch.select(new).to("cpu"))
        return bool(new)

    def rows(self, evaluate: Callable[[PairBatch], Tensor], device: torch.device) -> list[dict[str, Any]]:
        """Rows of the table; pairs that only an earlier end had measured lose that measurement."""
        rows = []
        for batch in self._kept:
            values = evaluate(batch.to(device)).cpu()
            columns = [column.tolist() for part in (values, batch.lengths) for column in part.chunk(2)]
            rows += [
                {"pair_id": pair, **dict(zip(NAMES, row, strict=True))}
                for pair, *row in zip(batch.ids, *columns, strict=True)
            ]
        measured = {row["pair_id"] for row in rows}
        return rows + [{"pair_id": pair} for pair in self.earlier if pair not in measured]
