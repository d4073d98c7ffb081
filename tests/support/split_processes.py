"""Two processes that keep the momentum of both sides; the recording of one ends midway. Arguments: a folder, how."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from families import make_batch, make_model
from torch.nn.parallel import DistributedDataParallel

from dyn_probe import Probe, sequence_logps
from dyn_probe.engine.held import Held

STEPS, ENDS = 6, 3


def train(out: Path | None, how: str, rank: int) -> dict[str, Any]:
    """The weights at the end."""
    model = DistributedDataParallel(make_model("llama", dtype=torch.float32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    options: dict[str, Any] = {"optimizer": optimizer, "metric_every": 1, "split_momentum": True, "shielded": True}
    probe = None if out is None else Probe(model, out / f"rank-{rank}", certify=False, **options)
    optimizer.register_step_pre_hook(lambda *_: None)  # somebody's, behind ours
    for step in range(STEPS):
        batch = make_batch(pairs=2, seed=2 * step + rank)
        recorded = probe is not None and not (how == "closed" and rank == 1 and step >= ENDS)
        if probe is not None and rank == 1 and step == ENDS:
            if how == "closed":
                probe.close()
            elif how == "failed":
                Held.weighted = broken  # type: ignore[method-assign]
        optimizer.zero_grad()
        if recorded and probe is not None and probe.failure is None:
            with probe.step(step, batch.ids):
                backward(model, batch, probe)
        else:
            backward(model, batch)
        optimizer.step()
    if probe is not None and probe.failure is None:
        probe.close()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def backward(model: Any, batch: Any, probe: Probe | None = None) -> None:
    logps = sequence_logps(model, batch)
    if probe is not None:
        probe.pairs(logps)
    (logps[2:] - logps[:2]).mean().backward()


def broken(*_: Any, **__: Any) -> Any:
    raise ArithmeticError("planned")


def main() -> None:
    dist.init_process_group("gloo")
    folder, how, rank = Path(sys.argv[1]), sys.argv[2], dist.get_rank()
    found = {"plain": train(None, how, rank), "recorded": train(folder, how, rank)}
    torch.save(found, folder / f"weights-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
