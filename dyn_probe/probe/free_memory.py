"""How much memory is free where a model lies."""

from __future__ import annotations

import os

import torch

from dyn_probe.trace.damage import free_memory as free_on_the_host


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be taken on the device, what torch holds in reserve counted; on the host this process's share of
    what its container or the system has free. None where that is not known."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    free = free_on_the_host() if device.type == "cpu" else None
    return None if free is None else free // processes_here()


def processes_here() -> int:
    """Processes of this training on this machine, as its launcher says it."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(told)) if told.isdigit() else 1
