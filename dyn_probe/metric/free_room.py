"""How much memory the copy of the weights may take."""

from __future__ import annotations

import torch

PEAK = 1.05
"""The copy of the weights may raise the memory of a run by no more than this."""


def free_room(device: torch.device) -> float:
    """Bytes that may be taken without raising the run's peak by more than ``PEAK``; no limit but on a GPU."""
    if device.type != "cuda":
        return float("inf")
    return PEAK * torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
