"""Is every use of every trained parameter explained? Read off the autograd graph, before any number is believed."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, nn

from dyn_probe.capture.tap import Capture
from dyn_probe.capture.uses import trained_parameters
from dyn_probe.errors import UnsupportedUse


def graph_nodes(root: Tensor) -> tuple[Counter[int], dict[int, Tensor], bool]:
    """``(uses by id(leaf), leaves by id, has reentrant checkpoints)`` of the graph behind ``root``."""
    seen: set[Any] = set()
    uses: Counter[int] = Counter()
    leaves: dict[int, Tensor] = {}
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
                leaves[id(following.variable)] = following.variable
            stack.append(following)
    return uses, leaves, reentrant


def check_coverage(capture: Capture, logps: Tensor) -> bool:
    """Compare the graph behind ``logps`` with what the taps saw; returns whether reentrant checkpoints hide parts.

    Raises:
        UnsupportedUse: listing every parameter with a use outside its module, or with more uses than taps.
    """
    capture.check()
    uses, leaves, reentrant = graph_nodes(logps)
    names = {id(p): name for name, p in trained_parameters(capture.model).items()} | capture.leaves
    counted: Counter[str] = Counter()
    for leaf, count in uses.items():
        counted[names.get(leaf, "")] += count
    complaints = _strangers(capture, {i: leaf for i, leaf in leaves.items() if i not in names})
    for name in trained_parameters(capture.model):
        calls = capture.taken.get(name, [])
        found = counted[name]
        generic = any(call.kind is not None and call.kind.name == "generic" for call in calls)
        if found > len(calls) and not (generic and calls):
            complaints.append(f"{name}: used {found} times, {len(calls)} of them through its own module")
    if complaints:
        raise UnsupportedUse(
            "cannot record this model exactly; parameters are used outside the module that owns them:\n  "
            + "\n  ".join(complaints)
        )
    return reentrant


def _strangers(capture: Capture, leaves: dict[int, Tensor]) -> list[str]:
    """Parameters in the graph of a split model that no module of theirs was called with. (Their names are gone: FSDP2
    puts whole parameters in the place of its pieces.)"""
    if not any(hasattr(p, "placements") for p in trained_parameters(capture.model).values()):
        return []
    return [
        f"a parameter of shape {list(leaf.shape)}: used without its own module being called"
        for leaf in leaves.values()
        if isinstance(leaf, nn.Parameter)
    ]
