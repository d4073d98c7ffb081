"""What the benchmarks share: the clock and the memory gauge."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

Answer = TypeVar("Answer")


def timed(call: Callable[[], Answer], device: str) -> tuple[float, Answer]:
    """(seconds, answer)."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    answer = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, answer


def peak_mib(device: str) -> float:
    """Peak memory of this process so far.

    On the CPU the kernel's own high-water mark of this program: ``getrusage`` would also count the parent process from
    which it was started.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit("peak memory needs Linux's /proc; give --no-memory")
    return int(found[1]) / 1024
