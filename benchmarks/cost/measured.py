"""One cell: every kind of step checked against the float64 twin, then timed in turns."""

from __future__ import annotations

import gc
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from cost.cells import Cell
from cost.counts import counted, forget_peak, now, peak_mib
from cost.kinds import KINDS, Kind
from cost.peers import PEERS
from cost.training import Training
from cost.twin import largest_error, true_numbers

LEAST = 2
"""Rounds that a cell has at least."""
IN_A_ROW = {"cuda": 6}
"""Steps of each kind that follow each other in a round, where the host runs ahead of the device as it does in training;
1 elsewhere."""
COUNTED = 15.0
"""Steps that take longer (seconds) are not made once more to be counted: their counts are those of shorter rows."""


class Measured:
    """The kinds of a cell that run, with what is known of each."""

    def __init__(self, cell: Cell, device: str, checked: int) -> None:
        self.training = Training(cell, device)
        self.wanted = true_numbers(self.training.model, self.training.batch, checked)
        self.found: dict[str, dict[str, Any]] = {}
        self.kinds: dict[str, Kind] = {}
        self.took: dict[str, float] = {}
        self.training.hold(True)  # so that each kind is checked on the very weights of the twin
        for name in ("plain", *cell.kinds):
            self._check(name)
        self.training.hold(False)

    def _check(self, name: str) -> None:
        try:
            kind = KINDS[name][0](self.training)
            began = now(self.training.device)
            kind.step()
            self.took[name] = now(self.training.device) - began
            if kind.numbers is not None:
                self.found[name] = {"error": largest_error(kind.numbers(), self.wanted)}
            self.kinds[name] = kind
        except ImportError:
            self.found[name] = {"why": f"not installed: pip install {PEERS[name].package}"}
        except Exception as error:  # a peer that cannot explain the model says so in many ways
            if name not in PEERS:
                raise
            said = " ".join(str(error).split()) or type(error).__name__
            self.found[name] = {"why": f"does not run: {said[:160]}"}
        finally:
            self.training.optimizer.zero_grad(set_to_none=True)
            gc.collect()

    def round(self, device: str) -> dict[str, tuple[float, float | None]]:
        """Every kind in turn: (seconds of a step, MiB at the peak)."""
        taken = {}
        for name, kind in self.kinds.items():
            forget_peak(device)
            began, count = now(device), max(kind.steps, IN_A_ROW.get(device.split(":")[0], 1))
            for _ in range(count):
                kind.step()
            taken[name] = ((now(device) - began) / count, peak_mib(device))
        return taken


def measure(cell: Cell, device: str, rounds: int, seconds: float, checked: int = 1) -> dict[str, Any]:
    """What is kept of a cell.

    Args:
        rounds: at most; ``LEAST`` at least.
        seconds: no round begins after so many.
        checked: pairs that the twin computes.
    """
    began = time.monotonic()
    one = Measured(cell, device, min(checked, cell.pairs))
    short = [name for name, kind in one.kinds.items() if kind.steps == 1 and one.took[name] < COUNTED]
    counts = {name: counted(one.kinds[name].step, device) for name in short}
    taken: list[dict[str, tuple[float, float | None]]] = []
    while len(taken) < rounds and (len(taken) < LEAST or time.monotonic() - began < seconds):
        taken.append(one.round(device))
    kinds = {name: _summary(name, taken, counts.get(name, {})) for name in one.kinds}
    for name, found in one.found.items():
        kinds[name] = kinds.get(name, {}) | found
    for name, kind in one.kinds.items():
        kinds[name] |= kind.facts()
    return {
        "cell": cell.name, "device": about(device), "rounds": len(taken), "kinds": kinds,
        "seconds": time.monotonic() - began,
    }  # fmt: skip


def _summary(name: str, taken: list[dict[str, tuple[float, float | None]]], counts: dict[str, int]) -> dict[str, Any]:
    """Medians, and ratios to the plain step of the same round."""
    own, plain = [one[name] for one in taken], [one["plain"] for one in taken]
    ratios = [a[0] / b[0] for a, b in zip(own, plain, strict=True)]
    found = {
        "seconds": statistics.median(s for s, _ in own), "ratio": statistics.median(ratios),
        "least": min(ratios), "most": max(ratios), **counts,
    }  # fmt: skip
    peaks = [(a[1], b[1]) for a, b in zip(own, plain, strict=True)]
    held = [(a, b) for a, b in peaks if a is not None and b is not None]
    if held:
        found |= {"mib": statistics.median(a for a, _ in held), "memory": statistics.median(a / b for a, b in held)}
    return found


def about(device: str) -> dict[str, Any]:
    """The machine, as far as figures depend on it."""
    found = {"kind": torch.device(device).type, "torch": torch.__version__, "threads": torch.get_num_threads()}
    if device.startswith("cuda"):
        return found | {"name": torch.cuda.get_device_name()}
    return found | {"name": f"{processor()}, {torch.get_num_threads()} threads"}


def processor() -> str:
    """What Linux calls it."""
    said = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", said)
    return found[1].strip() if found else "a CPU"
