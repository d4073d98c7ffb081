"""Is every use of every trained parameter explained? Read off the autograd graph, before any number is believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyn_probe.engine.arithmetic import computing_in
from dyn_probe.engine.graph import Graph, graph_behind
from dyn_probe.engine.tap import Capture
from dyn_probe.engine.uses import Call, refuse
from dyn_probe.errors import BadInput, UnsupportedUse

OUTSIDE = "; parameters are used outside the module that owns them"


def check_gradient(logps: Tensor) -> None:
    """Raise BadInput where the log-probabilities do not come out of a graph."""
    if logps.grad_fn is None:
        raise BadInput(
            "wanted log-probabilities that carry a gradient; these are detached, or every parameter is frozen"
        )


def explained(capture: Capture, logps: Tensor) -> Graph:
    """See that every use behind ``logps`` is explained; returns the graph. What reentrant checkpoints hide is compared
    when the backward makes it, and refused by ``check_hidden``.

    Raises:
        BadInput: the log-probabilities carry no gradient.
        UnsupportedUse: a use that no rule explains, one outside its module, or rows that are mixed; lists all of them.
    """
    capture.check()
    check_gradient(logps)
    graph = graph_behind(logps)
    refuse(_unexplained(capture, graph), OUTSIDE)
    _look_into(capture, graph.checkpoints)
    if not capture.survey.split:
        _check_rows(capture, logps, graph.reentrant)
    capture.entry = capture.output = None  # logits are large, and their memory is wanted in the backward
    return graph


def backward_only(loss: Tensor, capture: Capture, reentrant: bool, retain: bool = False) -> None:
    """Run the taps behind ``loss`` and leave every parameter's ``.grad`` as it was.

    Reentrant checkpoints refuse ``autograd.grad``; there a plain backward runs, with the gradients put aside.
    """
    if not reentrant:
        torch.autograd.grad(loss, [capture.anchor], allow_unused=True, retain_graph=retain)
        return
    with gradients_aside(capture.survey.trained.values()):
        loss.backward(retain_graph=retain)
        check_hidden(capture)


@contextmanager
def gradients_aside(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, the parameters have no gradients at first; afterwards those that they had."""
    aside = [(p, p.grad) for p in parameters]
    try:
        for p, _ in aside:
            p.grad = None
        yield
    finally:
        for p, grad in aside:
            p.grad = grad


def check_hidden(capture: Capture) -> None:
    """After a backward through reentrant checkpoints: see that all uses which it computed again are explained, and that
    what has a gradient now was tapped.

    Raises:
        UnsupportedUse: listing the parameters with other uses.
    """
    trained = capture.survey.trained
    missed = [name for name, p in trained.items() if p.grad is not None and name not in capture.taken]
    refuse(capture.hidden or missed, OUTSIDE)


def _unexplained(capture: Capture, graph: Graph) -> list[str]:
    """Each parameter with more uses in ``graph`` than the taps in it account for."""
    trained = capture.survey.trained
    names = {id(p): name for name, p in trained.items()} | capture.leaves
    counted: Counter[str] = Counter()
    complaints = []
    for key, (leaf, count) in graph.uses.items():
        if key in names:
            counted[names[key]] += count
        elif capture.survey.split and isinstance(leaf, nn.Parameter):  # FSDP2 has put it in the place of its pieces
            complaints.append(f"a parameter of shape {list(leaf.shape)}: used without its own module being called")
    for name in trained:
        calls = [call for call in capture.taken.get(name, []) if call in graph.calls]
        tapped = sum(call.notes.get("uses", {}).get(name, 1) for call in calls)
        if counted[name] > tapped:
            complaints.append(f"{name}: used {counted[name]} times, {tapped} of them through its own module")
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


_CHECKED: WeakKeyDictionary[nn.Module, set[bool]] = WeakKeyDictionary()
"""Models whose rows were seen to be apart (with as many positions as rows, which is a case of its own, or not)."""


def _check_rows(capture: Capture, logps: Tensor, reentrant: bool) -> None:
    """Once per model: see that every tap's first dimension really is the rows, and that taps changed no output.

    The last row's log-probability alone is sent back: whatever reaches another row in a tap's output-gradient was
    flattened or ordered otherwise than it looks, or mixed between rows.

    Raises:
        UnsupportedUse: listing every module whose rows are not independent.
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
        backward_only(logps[-1], capture, reentrant, retain=True)
    refuse(wrong, "; rows of the batch are not independent, or not the first dimension, in")
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
