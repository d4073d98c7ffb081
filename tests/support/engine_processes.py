"""Started by torchrun: loops of one's own around ``Probe`` in two processes. Argument: a folder for their traces."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from families import make_batch, make_model
from hand_written import OwnExtraUse
from torch import nn

from dyn_probe import PairBatch, Probe, sequence_logps
from dyn_probe.train.parallel import shard, start_processes, wait_for_all

RATE = 1e-3
PAIRS = 4


def hand_written() -> nn.Module:
    """A model with a module that only the generic rule explains."""
    model = OwnExtraUse()
    model.extra = False
    return model


MODELS = {"tied": lambda: make_model("gpt2"), "hand-written": hand_written}
BATCHES = [make_batch(pairs=PAIRS, seed=seed) for seed in (1, 2)]
"""The micro-batches of the one step, over all processes."""


@contextmanager
def double() -> Iterator[None]:
    from families import double_throughout

    with double_throughout():
        yield


def share(batch: PairBatch, rank: int, count: int) -> PairBatch:
    size = batch.pairs // count
    return batch.select(range(rank * size, (rank + 1) * size))


def one_step(module: nn.Module, probe: Probe, rank: int, count: int, before_update: bool) -> None:
    """Two micro-batches and an update; pairs that are pulled by nothing are among them."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE)
    for k, whole in enumerate(BATCHES):
        batch = share(whole, rank, count)
        pulls = torch.tensor([0.0 if i == 1 else 1.0 + i for i in range(PAIRS)])
        own = pulls[rank * batch.pairs : (rank + 1) * batch.pairs]
        local = k < len(BATCHES) - 1 and hasattr(module, "no_sync")
        with module.no_sync() if local else nullcontext(), probe.step(0, batch.ids, RATE):  # type: ignore[operator]
            logps = sequence_logps(module, batch)
            losses = -own * logps[: batch.pairs] + 0.5 * own * logps[batch.pairs :]
            probe.pairs(logps, losses=losses.detach(), loss_scale=1 / len(BATCHES))
            (losses.mean() / len(BATCHES)).backward()
    if before_update:
        probe.before_update()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
    optimizer.step()
    probe.after_update()


def record(out: Path, kind: str, model: nn.Module, rank: int = 0, count: int = 1, before_update: bool = True) -> None:
    """One recorded step; ``kind`` is ddp, fsdp2 or none."""
    module: Any = model
    if kind == "ddp":
        module = nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp2":
        module = shard(model)
    probe = Probe(
        module,
        out,
        rank=rank,
        gram_every=1,
        micro_batches=len(BATCHES),
        update=before_update,
        certify=False,
        layers=False,
    )
    with probe:
        one_step(module, probe, rank, count, before_update)


def main() -> None:
    processes = start_processes("ddp", "cpu")
    folder = Path(sys.argv[1])
    with double():
        for name, make in MODELS.items():
            for kind in ("ddp", "fsdp2"):
                record(folder / f"{name}-{kind}", kind, make(), processes.rank, processes.count)
        record(folder / "silent", "ddp", make_model("gpt2"), processes.rank, processes.count, before_update=False)
    wait_for_all(processes)


if __name__ == "__main__":
    main()
