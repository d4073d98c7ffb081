"""Is every use of every trained parameter explained? Read off the autograd graph, before any number is believed."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from dyn_probe.capture.tap import Capture
from dyn_probe.capture.uses import trained_parameters
from dyn_probe.errors import UnsupportedUse


def graph_nodes(root: Tensor) -> tuple[Counter[int], bool]:
    """``(uses by id(parameter), has reentrant checkpoints)`` of the graph behind ``root``."""
    seen: set[Any] = set()
    uses: Counter[int] = Counter()
    reentrant = False
    stack = [root.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reentrant |= "CheckpointFunction" in node.name()
        for following, _ in node.next_functions:
            if following is not None and hasattr(following, "variable"):
                uses[id(following.variable)] += 1
            stack.append(following)
    return uses, reentrant


def check_coverage(capture: Capture, logps: Tensor) -> bool:
    """Compare the graph behind ``logps`` with what the taps saw; returns whether reentrant checkpoints hide parts.

    Raises:
        UnsupportedUse: listing every parameter with a use outside its module, or with more uses than taps.
    """
    capture.check()
    uses, reentrant = graph_nodes(logps)
    complaints = []
    for name, parameter in trained_parameters(capture.model).items():
        calls = capture.taken.get(name, [])
        found = uses[id(parameter)]
        generic = any(call.kind is not None and call.kind.name == "generic" for call in calls)
        if found > len(calls) and not (generic and calls):
            complaints.append(f"{name}: used {found} times, {len(calls)} of them through its own module")
    if complaints:
        raise UnsupportedUse(
            "cannot record this model exactly; parameters are used outside the module that owns them:\n  "
            + "\n  ".join(complaints)
        )
    return reentrant
