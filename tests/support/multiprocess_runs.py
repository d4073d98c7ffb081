"""Started by torchrun: tiny runs one after the other in one group of processes. Argument: a JSON file of options."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dyn_probe import PairBatch, Probe, sequence_logps
from dyn_probe.train import loop
from dyn_probe.train.display import Display
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.parallel import Processes, shard, start_processes, wait_for_all


def record_tiny(processes: Processes, stop: int | None = None, **options: Any) -> None:
    """One run; with ``stop``, one that fails before that step in every process."""
    config, real = RunConfig(**options), loop.train_step

    def stopping(run: Any, step: int) -> str:
        if step == stop:
            raise RuntimeError("stopped on purpose")
        return real(run, step)

    loop.train_step = stopping
    try:
        loop._record(config, replace(processes, kind=config.parallel), Display(False), None)
    finally:
        loop.train_step = real


class Odd(nn.Module):
    """A small model that uses a parameter outside the module that owns it: one that is called, or one that is not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(50, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 50)
        self.kind = kind

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        if self.kind != "stranger":
            x = self.layer(x)
        if self.kind != "none":
            x = F.linear(x, self.layer.weight)
        return self.head(torch.cumsum(x, 1))


def record_odd(kind: str) -> None:
    """Show the recorder a split model of that kind."""
    ids = torch.arange(24).reshape(4, 6)
    response = torch.zeros_like(ids)
    response[:, 3:] = 1
    model, batch = shard(Odd(kind)), PairBatch(ids, torch.ones_like(ids), response)
    with Probe(model).step(0, batch.ids, learning_rate=1.0) as probe:
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        logps.mean().backward()


def main() -> None:
    processes = start_processes("ddp", "cpu")
    for options in json.loads(Path(sys.argv[1]).read_text()):
        try:
            if "odd" in options:
                record_odd(options["odd"])
            else:
                record_tiny(processes, **options)
        except Exception as error:
            if processes.first:
                Path(f"{options['out']}.error").write_text(f"{type(error).__name__}: {error}")
    wait_for_all(processes)


if __name__ == "__main__":
    main()
