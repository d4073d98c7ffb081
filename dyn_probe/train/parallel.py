"""Several processes: the rank of this one, its slice of every batch, and what all of them agree on.

Every process goes through the same batches and trains on its own slice of each; gradients are averaged (DDP), or
averaged and sharded (FSDP2). The launchers are ``accelerate launch`` and ``torchrun``.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = TypeVar("Item")

SHARDED = "fsdp2"
"""The ``--parallel`` that shards parameters over processes."""


@dataclass(frozen=True)
class Processes:
    """This process among all of them; one process alone by default.

    Args:
        rank: its number.
        count: how many there are.
        kind: ``ddp`` or ``fsdp2``; empty for one process alone.
        device: device of its model, as for ``--device``; empty where the option decides.
    """

    rank: int = 0
    count: int = 1
    kind: str = ""
    device: str = ""

    @property
    def first(self) -> bool:
        """Whether this process writes the manifest, the checkpoints and the display."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        return self.kind == SHARDED

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's slice of a batch, which ``count`` must divide."""
        size = len(items) // self.count
        return list(items[self.rank * size : (self.rank + 1) * size])

    def agreed(self, value: Item) -> Item:
        """Rank 0's value, in all processes."""
        return self.gathered(value)[0]

    def gathered(self, value: Item) -> list[Item]:
        """Every process's value, by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def stacked(self, values: Tensor) -> Tensor:
        """``[count * n, ...]`` from every process's ``[n, ...]``, by rank."""
        if self.count == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Mean over the processes of gradients that no wrapper averages."""
        if self.count > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.count

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The module that the steps call: the model itself, wrapped in DDP, or sharded in place by FSDP2."""
        if self.kind == "ddp":
            return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        return shard(model) if self.sharded else model


ALONE = Processes()
"""One process."""


def start_processes(kind: str, device: str) -> Processes:
    """Join the processes that a launcher started; a single process if none did.

    Args:
        kind: ``ddp`` or ``fsdp2``.
        device: the ``--device`` option.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import PartialState

    if not dist.is_initialized():
        atexit.register(leave)
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes, kind, str(state.device))


def thins(device: str) -> bool:
    """Whether records are thinned by a budget if nothing else is asked for: on a GPU, where a record costs a good part
    of a step, in one process.

    Args:
        device: the ``--device`` option.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return alone and (device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()))


def first_process() -> bool:
    """Whether this process prints and writes reports; known before it has joined the others."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all(processes: Processes) -> None:
    """Continue once all processes have arrived. The group stays: another run may follow."""
    if processes.count > 1 and dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Leave the group that ``start_processes`` joined, at the end of the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def averaging(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Let DDP average gradients in this backward or not; other modules are not affected."""
    if wanted or not isinstance(module, nn.parallel.DistributedDataParallel):
        yield
    else:
        with module.no_sync():
            yield


def shard(model: nn.Module) -> nn.Module:
    """FSDP2 in place: one group per block, one for the rest; all processes start from rank 0's weights."""
    from torch.distributed.fsdp import fully_shard

    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor, 0)
    for block in blocks_of(model):
        fully_shard(block)
    fully_shard(model, reshard_after_forward=True)
    return model


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The transformer's blocks: the entries of the module list that holds the most parameters."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    sizes = [sum(p.numel() for p in m.parameters()) for m in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []


def full_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Unsharded states of a sharded model and its optimizer on the CPU; every process must call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    return get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def full_weights(model: nn.Module) -> dict[str, Any]:
    """Unsharded weights of a sharded model on the CPU; every process must call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_full_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, weights: dict[str, Any], moments: dict[str, Any]
) -> None:
    """Load states of ``full_state`` into a sharded model and its optimizer."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=options)
