"""What the rows of a pair have in common: the prompt, and where padding is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dyn_probe.capture.uses import Span


def find_spans(ids: Any, mask: Any) -> tuple[Span, ...]:
    """One ``Span`` per pair of ``ids [2B, L]``, rows ``[chosen; rejected]``; none where there are no ids to read.

    A span is only a hint of where work can be saved: what is skipped is checked to be zero, what is shared to be equal.
    """
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[0] % 2 or ids.device.type != "cpu":
        return ()
    kept = (
        mask.bool() if isinstance(mask, Tensor) and mask.shape == ids.shape else torch.ones_like(ids, dtype=torch.bool)
    )
    half, length = ids.shape[0] // 2, ids.shape[1]
    positions = torch.arange(length)
    starts = torch.where(kept, positions, length).amin(1).tolist()
    ends = (torch.where(kept, positions, -1).amax(1) + 1).tolist()
    spans = []
    for i in range(half):
        j = i + half
        same = starts[i] == starts[j]
        shared = _prefix(ids[i, starts[i] : ends[i]], ids[j, starts[j] : ends[j]]) if same else 0
        spans.append(Span(starts[i], ends[i], starts[j], ends[j], shared))
    return tuple(spans)


def _prefix(left: Tensor, right: Tensor) -> int:
    """Length of the common prefix."""
    n = min(len(left), len(right))
    differs = (left[:n] != right[:n]).nonzero()
    return int(differs[0]) if len(differs) else n
