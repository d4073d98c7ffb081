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
    """What stands behind a tensor: each leaf and how often it is used, by its ``id``; the tapped calls; the types that
    gradients are computed in beside those of the leaves; the reentrant checkpoints."""

    uses: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    calls: set[Call] = field(default_factory=set)
    dtypes: set[torch.dtype] = field(default_factory=set)
    checkpoints: list[Any] = field(default_factory=list)

    @property
    def reentrant(self) -> bool:
        return bool(self.checkpoints)

    def used(self, leaf: Tensor) -> int:
        """How often the leaf is used."""
        return self.uses.get(id(leaf), (leaf, 0))[1]


LEAF, FUNCTION, PLAIN, ASKED = range(4)
"""What the walk does at a node: count the use of a leaf, see whether it is a tap, go on, or ask for its types."""


class _Kinds(dict[type, int]):
    """By the type of the node: thousands of nodes are asked in every recorded step, of a few dozen types. Those of
    Python functions, which may be made anew all the time, are not kept."""

    def __missing__(self, kind: type) -> int:
        if issubclass(kind, BackwardCFunction):
            return FUNCTION
        name = kind.__name__
        self[kind] = LEAF if name == "AccumulateGrad" else PLAIN if name in AS_GIVEN else ASKED
        return self[kind]


_KINDS = _Kinds()


def graph_behind(*roots: Tensor, until: Iterable[Tensor] = ()) -> Graph:
    """Walk the autograd graph behind ``roots``, and no further than the tensors ``until``."""
    seen: set[Any] = {tensor.grad_fn for tensor in until} | {None}
    graph, used = Graph(), []
    stack: list[Any] = list({root.grad_fn for root in roots} - seen)  # outputs of one node are one root
    seen.update(stack)
    while stack:
        node = stack.pop()
        kind = _KINDS[type(node)]
        if kind == FUNCTION and isinstance(call := getattr(node, "call", None), Call):
            graph.calls.add(call)  # a tap, which gives what its module gave
        elif kind != PLAIN:
            graph.dtypes.update([output.dtype for output in node._input_metadata])
            if "CheckpointFunction" in type(node).__name__:
                graph.checkpoints.append(node)
        for following, _ in node.next_functions:
            if following is None:
                continue
            if _KINDS[type(following)] == LEAF:
                used.append(following)
            elif following not in seen:
                seen.add(following)
                stack.append(following)
    for node, count in Counter(used).items():
        leaf = node.variable
        graph.uses[id(leaf)] = leaf, count + graph.used(leaf)
    return graph
