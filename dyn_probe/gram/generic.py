"""The generic rule: run this one module again on one row's inputs and ask autograd for its own parameters.

Exact wherever a module treats rows apart (mixture-of-experts layers too, when they see every token); a module that
mixes rows, or that draws random numbers, gives other outputs the second time and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyn_probe.capture.autocast import autocast_type, computing_in
from dyn_probe.capture.uses import Call
from dyn_probe.errors import UnsupportedUse
from dyn_probe.gram.coverage import graph_behind
from dyn_probe.gram.factors import Factor, PerRow
from dyn_probe.gram.twin import agree, twin


def claims(module: nn.Module) -> bool:
    """Any module; the check of what it computes is in ``keep``."""
    return True


def keep(call: Call) -> bool:
    """Keep every tensor among the arguments, after seeing that the last row alone gives the last row's outputs."""
    leaves, spec = pytree.tree_flatten((call.args, dict(call.kwargs)))
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    call.saved = tuple(leaves[i] for i in tensors)
    call.notes.update(
        spec=spec, tensors=tensors, rest=[None if i in tensors else leaf for i, leaf in enumerate(leaves)]
    )
    call.notes["autocast"] = autocast_type(call.outputs[0].device.type)
    for output in call.outputs:
        if not output.dim() or output.shape[0] not in (call.rows, call.rows * call.length):
            raise UnsupportedUse(
                f"{call.use.name} ({type(call.module).__name__}): wanted an output whose first dimension is the rows; "
                f"got {list(output.shape)}"
            )
    again = _outputs(call, _rerun(call, call.saved, call.rows - 1, {}))
    for one, output in zip(again, call.outputs, strict=True):
        if not agree(row_of(output, call.rows - 1, call), one):
            raise UnsupportedUse(
                f"{call.use.name} ({type(call.module).__name__}): one row alone gives other outputs than in the batch "
                "(rows are mixed, or random numbers are drawn), so its per-row gradient is not defined"
            )
    _reaches_by_name(call)
    call.notes["uses"] = _uses(call)
    return True


_BY_NAME: WeakSet[nn.Module] = WeakSet()
"""Modules that were seen to reach their parameters by name alone. Only what was found in order stands here."""


def _reaches_by_name(call: Call) -> None:
    """See, once per module, that a twin with other parameters uses those and none of the module's own.

    Raises:
        UnsupportedUse: the module reaches its parameter by another way than its name, so that no twin can replace it.
    """
    if call.module in _BY_NAME:
        return
    trained = {n: p for n, p in call.module._parameters.items() if p is not None and n in call.trained}
    own = {n: p.detach().requires_grad_() for n, p in trained.items()}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):  # not a checkpoint's
        outputs = _outputs(call, _rerun(call, call.saved, None, own))
    if {id(p) for p in trained.values()} & graph_behind(*outputs).uses.keys():
        raise UnsupportedUse(f"{call.use.name} ({type(call.module).__name__}): it holds its parameter by a second name")
    _BY_NAME.add(call.module)


def _uses(call: Call) -> dict[str, int]:
    """How often this call itself uses each of the module's parameters, read off the graph between its inputs and its
    outputs: what the whole graph has beyond that is used elsewhere."""
    inputs = [t for t in pytree.tree_leaves((call.args, dict(call.kwargs))) if isinstance(t, Tensor)]
    uses = graph_behind(*call.outputs, until=inputs).uses
    return {name: uses[id(call.module._parameters[local])] for local, name in call.use.parameters.items()}


def row_of(tensor: Tensor, row: int, call: Call) -> Tensor:
    """The part of a tensor that belongs to ``row``; tensors without a row dimension as they are."""
    if tensor.dim() and tensor.shape[0] == call.rows:
        return tensor[row : row + 1]
    if tensor.dim() and tensor.shape[0] == call.rows * call.length:
        return tensor[row * call.length : (row + 1) * call.length]
    return tensor


def _rerun(call: Call, saved: Sequence[Tensor], row: int | None, parameters: dict[str, Tensor]) -> Any:
    """The module's output on one row (on all for None), with ``parameters`` in the place of its own."""
    leaves = list(call.notes["rest"])
    for place, tensor in zip(call.notes["tensors"], saved, strict=True):
        leaves[place] = (tensor.detach() if row is None else row_of(tensor, row, call)).clone()
    args, kwargs = pytree.tree_unflatten(leaves, call.notes["spec"])
    device = saved[0].device.type if saved else "cpu"
    with computing_in(call.notes["autocast"], device):
        return twin(call.module, **parameters).forward(*args, **kwargs)


def _outputs(call: Call, output: Any) -> list[Tensor]:
    """The output's tensors that were tapped, in the order of ``call.outputs``."""
    leaves = pytree.tree_leaves(output)
    return [leaves[i] for i in call.notes["places"]]


def factors(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> dict[str, Factor]:
    """One factor per parameter; a row's gradients are computed together, once, when first asked for."""
    kept: dict[int, dict[str, Tensor]] = {}

    def of(row: int, name: str) -> Tensor:
        if row not in kept:
            kept[row] = _gradients(call, saved, grads, row)
        return kept[row][name]

    return {name: PerRow(partial(of, name=name), kept) for name in sorted(call.trained)}


def _gradients(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None], row: int) -> dict[str, Tensor]:
    """Each trained parameter's gradient of ``Σ outputs · output gradients`` on one row."""
    with torch.enable_grad():
        own = {
            n: p.detach().requires_grad_()
            for n, p in call.module._parameters.items()
            if p is not None and n in call.trained
        }
        outputs = _outputs(call, _rerun(call, saved, row, own))
        weighed = [
            (o, row_of(g, row, call)) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad
        ]
        found = torch.autograd.grad(
            [o for o, _ in weighed],
            list(own.values()),
            [g.to(o.dtype) for o, g in weighed],
            allow_unused=True,
        )
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(own.items(), found, strict=True)}
