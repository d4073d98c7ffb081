"""What stands behind a tensor in the autograd graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dyn_probe.engine.uses import Call


@dataclass(frozen=True, eq=False)
class Graph:
    """What stands behind a tensor: uses by ``id(leaf)``, the leaves, the tapped calls, reentrant checkpoints."""

    uses: Counter[int]
    leaves: dict[int, Tensor]
    calls: frozenset[Call]
    reentrant: bool


def graph_behind(root: Tensor) -> Graph:
    """Walk the autograd graph behind ``root``."""
    seen: set[Any] = set()
    uses: Counter[int] = Counter()
    leaves: dict[int, Tensor] = {}
    calls: set[Call] = set()
    reentrant = False
    stack = [root.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reentrant |= "CheckpointFunction" in node.name()
        if isinstance(call := getattr(node, "call", None), Call):
            calls.add(call)
        for following, _ in node.next_functions:
            if following is not None and hasattr(following, "variable"):
                uses[id(following.variable)] += 1
                leaves[id(following.variable)] = following.variable
            stack.append(following)
    return Graph(uses, leaves, frozenset(calls), reentrant)
