"""Started by torchrun: each optimizer under DDP and FSDP2, its steps against the stored weights, for a JSON list."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from metric_runs import SETUPS
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from dyn_probe.metric import StepReader, previous_metric, stored_agrees


def local(tensor: Any) -> Tensor:
    """The part of a tensor that lies here."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def train(name: str, kind: str, rank: int) -> dict[str, Any]:
    """Largest error of a step in units of float64's resolution, κ of every step, and how much lies here."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    if kind == "fsdp2":
        fully_shard(model)
    elif kind == "ddp":
        model = DistributedDataParallel(model)
    values = list(model.parameters())
    optimizer = SETUPS[name].optimizer(values[:2], values[2:])
    found: dict[str, Any] = {"error": 0.0, "factors": [], "entries": 0, "steps": 0, "ahead": 0}
    before: dict[Tensor, Tensor] = {}
    ahead: dict[Tensor, Any] = {}

    def begins(_: StepReader) -> None:
        before.update({p: p.detach().clone() for p in values})
        ahead.update({p: previous_metric(optimizer, p) for p in values})

    def ends(reader: StepReader) -> None:
        found["factors"].append(reader.factor().value)
        for parameter, step, gradient in reader.steps():
            old = before[parameter]
            moved, stored = step.step(gradient, old), parameter.detach() - old
            size = local(old).abs() + local(parameter.detach()).abs() + local(moved).abs() + local(gradient).abs()
            error = (local(moved) - local(stored)).abs() / size.clamp_min(1e-300) / torch.finfo(torch.float64).eps
            found["error"] = max(found["error"], float(error.max()) if error.numel() else 0.0)
            found["entries"] += local(gradient).numel()
            found["steps"] += 1
            found["ahead"] += ahead[parameter] is not None
            if kind == "ddp":
                assert stored_agrees(old, parameter, step, gradient).wrong == 0

    with StepReader(optimizer, begins=begins, ends=ends) as reader:
        for number in range(3):
            optimizer.zero_grad()
            for part in range(2):
                ids = torch.arange(4) + 3 * rank + 2 * number + part
                model(ids % 11).square().sum().backward()
            reader.backward_ended()
            nn.utils.clip_grad_norm_(values, 0.1)
            optimizer.step()
    return found


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    wanted = json.loads(Path(sys.argv[1]).read_text())
    results = {f"{name} {kind}": train(name, kind, rank) for name, kind in wanted}
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, results)
    if rank == 0:
        Path(sys.argv[1]).with_suffix(".found").write_text(json.dumps(gathered))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
