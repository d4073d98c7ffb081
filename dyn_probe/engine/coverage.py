"""Is every use of every trained parameter explained? Read off the autograd graph, before any number is believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyn_probe.engine.arithmetic import computing_in
from dyn_probe.engine.graph import Graph, graph_behind
from dyn_probe.engine.tap import Capture
from dyn_probe.engine.uses import Call
from dyn_probe.errors import UnsupportedUse


def check_coverage(capture: Capture, logps: Tensor) -> Graph:
    """Compare the graph behind ``logps`` with what the taps saw; returns the graph. What reentrant checkpoints hide is
    compared when the backward makes it, and refused by ``check_hidden``.

    Raises:
        UnsupportedUse: listing every parameter with a use outside its module, or with more uses than taps.
    """
    capture.check()
    graph = graph_behind(logps)
    _refuse(_unexplained(capture, graph))
    _look_into(capture, graph.checkpoints)
    return graph


def check_hidden(capture: Capture) -> None:
    """After a backward: the same for what reentrant checkpoints computed again in it.

    Raises:
        UnsupportedUse: as ``check_coverage``.
    """
    _refuse(list(capture.hidden))


def _refuse(complaints: Sequence[str]) -> None:
    if complaints:
        raise UnsupportedUse(
            "cannot record this model exactly; parameters are used outside the module that owns them:\n  "
            + "\n  ".join(complaints)
        )


def _unexplained(capture: Capture, graph: Graph) -> list[str]:
    """Each parameter with more uses in ``graph`` than the taps in it account for."""
    trained = capture.survey.trained
    names = {id(p): name for name, p in trained.items()} | capture.leaves
    counted: Counter[str] = Counter()
    for leaf, count in graph.uses.items():
        counted[names.get(leaf, "")] += count
    complaints = _strangers(capture, {i: leaf for i, leaf in graph.leaves.items() if i not in names})
    for name in trained:
        explained = sum(call.uses_of(name) for call in capture.taken.get(name, []) if call in graph.calls)
        if counted[name] > explained:
            complaints.append(f"{name}: used {counted[name]} times, {explained} of them through its own module")
    return complaints


def _look_into(capture: Capture, checkpoints: Sequence[Any]) -> None:
    """Have each reentrant checkpoint show the graph that it makes when the backward computes its segment again."""
    unknown = [node.name() for node in checkpoints if not callable(getattr(node, "run_function", None))]
    if unknown:
        raise UnsupportedUse(
            f"cannot record this model exactly: {', '.join(sorted(set(unknown)))} recomputes parts of it where the "
            "recorder cannot see them; write gradient_checkpointing_kwargs={'use_reentrant': False}"
        )
    for node in checkpoints:
        run = node.run_function
        node.run_function = partial(_segment, capture, run)
        capture.undo(partial(setattr, node, "run_function", run))


def _segment(capture: Capture, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """One checkpoint's segment, computed again and compared with what the taps in it see."""
    outputs = run(*args, **kwargs)
    capture.shield.around(_compare_segment)(capture, outputs)
    return outputs


def _compare_segment(capture: Capture, outputs: Any) -> None:
    roots = [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.grad_fn is not None]
    graph = graph_behind(*roots)
    capture.hidden |= dict.fromkeys(_unexplained(capture, graph))
    _look_into(capture, graph.checkpoints)


def _strangers(capture: Capture, leaves: dict[int, Tensor]) -> list[str]:
    """Parameters in the graph of a split model that no module of theirs was called with. (Their names are gone: FSDP2
    puts whole parameters in the place of its pieces.)"""
    if not capture.survey.split:
        return []
    return [
        f"a parameter of shape {list(leaf.shape)}: used without its own module being called"
        for leaf in leaves.values()
        if isinstance(leaf, nn.Parameter)
    ]


_CHECKED: WeakKeyDictionary[nn.Module, set[bool]] = WeakKeyDictionary()
"""Models whose rows were seen to be apart (with as many positions as rows, which is a case of its own, or not)."""


def check_rows(capture: Capture, logps: Tensor, run: Callable[[Tensor], None]) -> None:
    """Once per model: see that every tap's first dimension really is the rows, and that taps changed no output.

    The last row's log-probability alone is sent back: whatever reaches another row in a tap's output-gradient was
    flattened or ordered otherwise than it looks, or mixed between rows.

    Args:
        run: backward of a scalar behind ``logps``, which keeps the graph and touches no ``.grad``.

    Raises:
        UnsupportedUse: listing every module whose rows are not apart.
    """
    layout = capture.layout
    kind = layout.rows == layout.length
    if layout.responses < 2 or kind in _CHECKED.get(capture.model, set()):
        return
    wrong: dict[str, None] = {}

    def receive(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        for grad in grads:
            if grad is not None and bool(layout.outside(grad, layout.responses - 1)):
                wrong[str(call)] = None

    with capture.receiving(receive):
        run(logps[-1])
    if wrong:
        raise UnsupportedUse(
            "cannot record this model exactly; rows of the batch are not apart, or not the first dimension, in:\n  "
            + "\n  ".join(wrong)
        )
    _check_output(capture)
    _CHECKED.setdefault(capture.model, set()).add(kind)


def _check_output(capture: Capture) -> None:
    """Tables read once for the whole batch were widened to its rows: the model's output must be what it was."""
    if not capture.widened or capture.entry is None:
        return
    args, kwargs, state = capture.entry
    arithmetic = computing_in(capture.around, capture.anchor.device.type)
    with torch.no_grad(), capture.quiet(), arithmetic, torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        plain = capture.model(*args, **kwargs)
    pairs = zip(pytree.tree_leaves(plain), pytree.tree_leaves(capture.output), strict=False)
    same = [bool(torch.equal(a, b)) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point()]
    if not same or not same[0]:
        raise UnsupportedUse(
            "cannot record this model: a table read once for the whole batch is used otherwise than by adding it to "
            f"every row: {', '.join(dict.fromkeys(capture.widened))}; read it with ids of shape [rows, positions]"
        )
