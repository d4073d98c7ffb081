"""Whether a forward draws random numbers, seen by what it leaves behind: generators that have moved on.

So dropout is found wherever it is (modules, functions, attention kernels, whole layers left out) and by whatever name
its rate has in the model's configuration.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def random_states(tensors: Iterable[Tensor]) -> list[Any]:
    """The states of Python's generator, torch's on the CPU, and those of the tensors' devices."""
    others = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    return [random.getstate(), torch.get_rng_state(), *(_state(device) for device in sorted(others, key=str))]


def _state(device: torch.device) -> Tensor:
    module = torch.get_device_module(device)
    return module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)


def have_moved(before: list[Any], after: list[Any]) -> bool:
    """Whether random numbers were drawn between two calls of ``random_states``."""
    return any(not torch.equal(a, b) if isinstance(a, Tensor) else a != b for a, b in zip(before, after, strict=True))
