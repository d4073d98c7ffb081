"""How fast a device multiplies and moves numbers: two rates, by which the cheapest route to a product is chosen.

On a GPU both are measured once in a process, some milliseconds each, for the type of the activations: tensor cores put
the rates of half and single precision far apart. On a CPU they are the ones below, so that the same run takes the same
routes again. ``USED`` is what a process went by and what ``run.json`` has; whoever wants others puts them there first:
``USED[torch.device("cuda", 0), torch.bfloat16] = Rates(3.5e14, 1.1e12)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from dyn_probe.engine.arithmetic import matmul32


@dataclass(frozen=True)
class Rates:
    """Of one kind of device and type.

    Args:
        products: multiply-adds a second of batched products.
        entries: float32 numbers a second of two arrays that are multiplied entry by entry and summed up.
    """

    products: float
    entries: float

    @property
    def entry(self) -> float:
        """Multiply-adds that take as long as one entry."""
        return self.products / self.entries


Key = tuple[torch.device, torch.dtype]
CPU = Rates(4e10, 3.3e9)
"""Only their ratio counts here: an entry takes as long as 12 multiply-adds (8 to 20 were measured on two cores, where
slices stay in the cache)."""
USED: dict[Key, Rates] = {}
"""(device, type) → the rates that routes are chosen by."""
SIDE, LENGTH = 1024, 2048
"""Of the product that is timed: ``[8, SIDE, LENGTH] [8, LENGTH, SIDE]``."""


def rates_of(tensor: Tensor) -> Rates:
    """Those for products of tensors like this one."""
    key = (tensor.device, tensor.dtype)
    if key not in USED:
        USED[key] = measured(tensor.device, tensor.dtype) if tensor.is_cuda else CPU
    return USED[key]


def measured(device: torch.device, dtype: torch.dtype) -> Rates:
    """Timed on a GPU by its own events; it waits for the device, once. The training's random numbers stay its own."""
    with torch.cuda.device(device):
        own = torch.Generator(device).manual_seed(0)
        left = torch.randn(8, SIDE, LENGTH, device=device, generator=own).to(dtype)
        one, other = torch.randn(2, 8 * SIDE * SIDE, device=device, generator=own).unbind(0)
        multiplied = 8 * SIDE * SIDE * LENGTH / _seconds(lambda: matmul32(left, left.mT))
        return Rates(multiplied, one.numel() / _seconds(lambda: (one * other).sum()))


def _seconds(work: Callable[[], object], times: int = 5) -> float:
    """The shortest of some tries."""
    found = []
    for _ in range(times + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3)
    return min(found[1:])


def as_manifest() -> dict[str, dict[str, float]]:
    """``{"cuda:0 bfloat16": {"products": …, "entries": …}}`` of all that were used."""
    return {f"{device} {str(dtype).removeprefix('torch.')}": asdict(found) for (device, dtype), found in USED.items()}
