"""What stands behind a tensor in the autograd graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from dyn_probe.engine.uses import Call


@dataclass(frozen=True, eq=False)
class Graph:
    """What stands behind a tensor: uses by ``id(leaf)``, the leaves, the tapped calls, the types that gradients are
    computed in, the reentrant checkpoints."""

    uses: Counter[int]
    leaves: dict[int, Tensor]
    calls: frozenset[Call]
    dtypes: frozenset[torch.dtype]
    checkpoints: tuple[Any, ...]

    @property
    def reentrant(self) -> bool:
        return bool(self.checkpoints)


def graph_behind(*roots: Tensor, until: Iterable[Tensor] = ()) -> Graph:
    """Walk the autograd graph behind ``roots``, and no further than the tensors ``until``."""
    seen: set[Any] = {tensor.grad_fn for tensor in until}
    uses: Counter[int] = Counter()
    leaves: dict[int, Tensor] = {}
    calls: set[Call] = set()
    dtypes: set[torch.dtype] = set()
    checkpoints: list[Any] = []
    stack: list[Any] = [root.grad_fn for root in roots]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):  # written in Python: a tap, a checkpoint, or somebody's own
            if "CheckpointFunction" in type(node).__name__:
                checkpoints.append(node)
            if isinstance(call := getattr(node, "call", None), Call):
                calls.add(call)
        dtypes.update([output.dtype for output in node._input_metadata])
        for following, _ in node.next_functions:
            if type(following).__name__ == "AccumulateGrad":
                uses[id(following.variable)] += 1
                leaves[id(following.variable)] = following.variable
            stack.append(following)
    return Graph(uses, leaves, frozenset(calls), frozenset(dtypes), tuple(checkpoints))
