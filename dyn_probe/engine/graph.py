"""What stands behind a tensor in the autograd graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from dyn_probe.engine.uses import Call

AS_GIVEN = frozenset(
    f"{name}Backward{k}"
    for name in (
        "View", "UnsafeView", "ReshapeAlias", "T", "Transpose", "Permute", "Slice", "Split", "Select", "Unsqueeze",
        "Squeeze", "Expand", "Clone", "Cat", "Mm", "Bmm", "Addmm", "Mul", "Add", "Sub", "Div", "Neg", "Pow", "Rsqrt",
        "Silu", "Gelu", "Tanh", "Relu",
    )
    for k in range(7)
)  # fmt: skip
"""Operations whose result has the type of what they are given (or the wider one of two): where all graphs are walked,
asking them for it takes most of the time. (Numbers without a dimension and changes in place can have it otherwise; what
puts a coarse type there, a cast, a module or a parameter, is asked all the same.)"""


@dataclass(eq=False)
class Graph:
    """What stands behind a tensor: how often each leaf is used, the tapped calls, the types that gradients are computed
    in beside those of the leaves, the reentrant checkpoints."""

    uses: Counter[Tensor] = field(default_factory=Counter)
    calls: set[Call] = field(default_factory=set)
    dtypes: set[torch.dtype] = field(default_factory=set)
    checkpoints: list[Any] = field(default_factory=list)

    @property
    def reentrant(self) -> bool:
        return bool(self.checkpoints)


def graph_behind(*roots: Tensor, until: Iterable[Tensor] = ()) -> Graph:
    """Walk the autograd graph behind ``roots``, and no further than the tensors ``until``."""
    seen: set[Any] = {tensor.grad_fn for tensor in until}
    graph = Graph()
    stack: list[Any] = [root.grad_fn for root in roots]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = type(node).__name__
        call = getattr(node, "call", None) if isinstance(node, BackwardCFunction) else None
        if isinstance(call, Call):  # a tap, which gives what its module gave
            graph.calls.add(call)
        elif kind not in AS_GIVEN:
            graph.dtypes.update([output.dtype for output in node._input_metadata])
            if "CheckpointFunction" in kind:
                graph.checkpoints.append(node)
        for following, _ in node.next_functions:
            if type(following).__name__ == "AccumulateGrad":
                graph.uses[following.variable] += 1
            else:
                stack.append(following)
    return graph
