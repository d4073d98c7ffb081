"""Small recorded runs for the tests of the loop: seconds each, on the built-in model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.train.loop import record
from dyn_probe.train.options.config import RunConfig

SMALL: dict[str, Any] = {
    "max_pairs": 60, "pretrain_steps": 0, "sft_steps": 2, "steps": 4, "batch_size": 4, "gram_every": 2, "device": "cpu",
}  # fmt: skip


def small(out: Path, **options: Any) -> RunConfig:
    """The configuration of a small run."""
    return RunConfig(out=str(out), **SMALL | options)


def run(out: Path, **options: Any) -> Trace:
    """A small recorded run's trace."""
    return load_trace(record(small(out, **options), progress=False))
