"""From the device to the CPU in one copy, which the device need not stop for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor


def fetching(values: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Start copying detached values to the CPU; calling what this returns waits for them, each in its shape and type.
    Those of one device travel together."""
    waits: dict[int, Callable[[], Tensor]] = {}
    for device in dict.fromkeys(value.device for value in values if value.is_cuda):
        here = [k for k, value in enumerate(values) if value.device == device]
        waits |= zip(here, _from_device([values[k] for k in here]), strict=True)
    return lambda: [waits[k]() if k in waits else value.cpu() for k, value in enumerate(values)]


def _from_device(values: Sequence[Tensor]) -> list[Callable[[], Tensor]]:
    """One copy for all of them, into pinned memory."""
    packed = torch.cat([value.double().flatten() for value in values]).to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(values[0].device))

    def wait(begin: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        arrived.synchronize()
        return packed[begin : begin + shape.numel()].view(shape).to(dtype)

    begins = accumulate((value.numel() for value in values), initial=0)
    return [partial(wait, begin, v.shape, v.dtype) for begin, v in zip(begins, values, strict=False)]
