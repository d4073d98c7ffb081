"""What a step launches, reads back and holds: counted by the dispatcher, the profiler and the kernel."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "index.Tensor_bool")
"""Calls whose answer the host waits for."""


class Calls(TorchDispatchMode):
    """Counts ATen calls by name; indexing by a mask apart from other indexing."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function).removeprefix("aten.")
        if name == "index.Tensor" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            name += "_bool"
        self.counted[name] += 1
        return function(*args, **(kwargs or {}))

    @property
    def reads(self) -> int:
        """Calls after which the host has waited for the device."""
        return sum(n for name, n in self.counted.items() if name.startswith(READS))


def counted(step: Callable[[], object], device: str) -> dict[str, int]:
    """ATen calls and host reads of one step; on CUDA also kernels, and waits of the host, of one step more."""
    with Calls() as calls:
        step()
    found = {"aten": calls.counted.total(), "reads": calls.reads}
    if not device.startswith("cuda"):
        return found
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    events = profile.key_averages()
    kernels = sum(e.count for e in events if e.device_type == torch.autograd.DeviceType.CUDA)
    stops = sum(e.count for e in events if e.key in ("cudaStreamSynchronize", "cudaEventSynchronize"))
    return found | {"kernels": kernels, "stops": stops}


def now(device: str) -> float:
    """Seconds, once the device is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak(device: str) -> None:
    """The high-water mark begins anew: on the CPU the kernel's own mark of this program, where Linux lets it reset."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mib(device: str) -> float | None:
    """MiB that the device (or this program, on the CPU) held at most since ``forget_peak``; None: not known here."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    if not Path("/proc/self/clear_refs").exists():
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else None
