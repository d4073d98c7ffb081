"""The generic rule: run this one module again, row by row, and pull the output-gradients back to its own parameters.

Exact wherever a module treats rows independently (mixture-of-experts layers too, when they see every token); a module
that mixes rows, or that draws random numbers, gives other outputs the second time and is refused. All rows go through
one ``vmap`` where the module allows it, else one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils import _pytree as pytree

from dyn_probe.engine.arithmetic import as32, autocast_type, computing_in
from dyn_probe.engine.factors import Factor, RowGradients, Vector
from dyn_probe.engine.graph import graph_behind
from dyn_probe.engine.module_copy import agree, module_copy
from dyn_probe.engine.uses import Call
from dyn_probe.errors import UnsupportedUse

BUDGET = 1 << 28
"""Bytes of row gradients that may be in memory at once; beyond, they are made when they are asked for."""

Grads = dict[str, Tensor]


@dataclass(eq=False)
class MadeVector(Vector):
    """Rows that are made when they are asked for, since all of them together would be too large.

    Args:
        grads: empty, ``[R, 0]``.
        make: gives one row's gradient.
    """

    make: Callable[[int], Tensor]
    step: ClassVar[int] = 1
    part = RowGradients.part  # type: ignore[assignment]

    def take(self, rows: slice) -> Tensor:
        return torch.stack([as32(self.make(i).flatten()) for i in range(*rows.indices(self.rows))])

    def settled(self) -> Vector:
        return Vector(self.take(slice(None)))

    def scaled(self, weights: Tensor) -> MadeVector:
        return MadeVector(self.grads, lambda i: as32(self.make(i)) * float(weights[i]))


def claims(module: nn.Module) -> bool:
    """Any module; the check of what it computes is in ``keep``."""
    return True


def check(call: Call) -> bool:
    """See that a copy with other parameters uses those and none of the module's own.

    Raises:
        UnsupportedUse: the module reaches its parameter by another way than its name, so that no copy can replace it.
    """
    _take_arguments(call)
    trained = [p for n, p in call.module._parameters.items() if n in call.trained]
    own = {name: p.requires_grad_() for name, p in _own(call).items()}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):  # not a checkpoint's
        outputs = _rerun(call, own, [t.detach().clone() for t in call.saved])
    graph = graph_behind(*outputs)
    if any(graph.used(parameter) for parameter in trained):
        raise UnsupportedUse(f"{call}: it holds its parameter by a second name")
    return True


def keep(call: Call) -> bool:
    """Keep every tensor among the arguments, after seeing that the last row alone gives the last row's outputs."""
    _take_arguments(call)
    for output in call.outputs:
        if not _entries(output, call):
            raise UnsupportedUse(
                f"{call}: wanted an output whose first dimension is the rows; got {list(output.shape)}"
            )
    last = call.layout.rows - 1
    again = _rerun(call, {}, [row_of(t, last, call).clone() for t in call.saved])
    for one, output in zip(again, call.outputs, strict=True):
        if not agree(row_of(output, last, call), one):
            raise UnsupportedUse(
                f"{call}: one row alone gives other outputs than in the batch (rows are mixed, or random numbers are "
                "drawn), so its per-row gradient is not defined"
            )
    graph = graph_behind(*call.outputs, until=call.saved)  # what the whole graph has beyond this is used elsewhere
    own = call.module._parameters
    call.notes["uses"] = {name: graph.used(own[local]) for local, name in call.use.parameters.items()}
    return True


def _take_arguments(call: Call) -> None:
    """The call's tensors into ``saved``, all else into ``notes``."""
    leaves, spec = pytree.tree_flatten((call.args, dict(call.kwargs)))
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    call.saved = tuple(leaves[i] for i in tensors)
    rest = [None if i in tensors else leaf for i, leaf in enumerate(leaves)]
    autocast = autocast_type(call.outputs[0].device.type)
    call.notes.update(spec=spec, tensors=tensors, rest=rest, autocast=autocast)


def _own(call: Call) -> Grads:
    """The module's own trained parameters, by local name, cut off from the graph."""
    return {n: p.detach() for n, p in call.module._parameters.items() if n in call.trained and p is not None}


def _entries(tensor: Tensor, call: Call) -> int:
    """How many entries of its first dimension belong to one row; 0 where that is not one of rows."""
    first = tensor.shape[0] if tensor.dim() else 0
    return {call.layout.rows: 1, call.layout.rows * call.layout.length: call.layout.length}.get(first, 0)


def row_of(tensor: Tensor, row: int, call: Call) -> Tensor:
    """The part of a tensor that belongs to ``row``; tensors without a row dimension as they are."""
    own = _entries(tensor, call)
    return tensor[row * own : (row + 1) * own] if own else tensor


def _rerun(call: Call, parameters: Grads, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tapped outputs again, with ``tensors`` in the place of the tensor arguments, and these ``parameters``."""
    leaves = list(call.notes["rest"])
    for place, tensor in zip(call.notes["tensors"], tensors, strict=True):
        leaves[place] = tensor
    args, kwargs = pytree.tree_unflatten(leaves, call.notes["spec"])
    device = tensors[0].device.type if tensors else "cpu"
    with computing_in(call.notes["autocast"], device):
        found = pytree.tree_leaves(functional_call(module_copy(call.module), parameters, args, kwargs))
    return [found[i] for i in call.places]


def factors(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> dict[str, Factor]:
    """Every response's gradient of each trained parameter."""
    parameters = _own(call)
    responses = call.layout.responses
    size = responses * sum(p.numel() * p.element_size() for p in parameters.values())
    if size > BUDGET:
        empty = saved[0].new_empty(responses, 0)
        return {
            n: MadeVector(empty, lambda i, n=n, p=p: _row(call, saved, grads, {n: p}, i)[n])  # type: ignore[misc]
            for n, p in parameters.items()
        }
    found = _all_rows(call, saved, grads, parameters)
    return {name: Vector(found[name].reshape(len(found[name]), -1)) for name in sorted(parameters)}


def _all_rows(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None], parameters: Grads) -> Grads:
    """``{name: [responses, *shape]}``: through ``vmap`` until the module has shown that it does not allow it."""
    if call.layout.places is None and call.claim.notes.get("vmap", True):
        try:
            return _mapped(call, saved, grads, parameters)
        except Exception:  # whatever a module's own code raises under vmap; the loop behind asks the same of it
            call.claim.notes["vmap"] = False
    rows = [_row(call, saved, grads, parameters, i) for i in range(call.layout.responses)]
    return {name: torch.stack([row[name] for row in rows]) for name in parameters}


def _mapped(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None], parameters: Grads) -> Grads:
    """All rows at once."""
    rows, given = call.layout.rows, (list(saved), list(grads))

    def by_row(tensor: Tensor) -> Tensor:
        own = _entries(tensor, call)
        return tensor.unflatten(0, (rows, own)) if own else tensor

    dims = pytree.tree_map_only(Tensor, lambda tensor: 0 if _entries(tensor, call) else None, given)
    return vmap(partial(_pulled, call, parameters), in_dims=dims)(*pytree.tree_map_only(Tensor, by_row, given))


def _row(
    call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None], parameters: Grads, response: int
) -> Grads:
    """One response's gradients: those of its row, the output-gradients of other responses' positions set to 0."""
    row, mask = call.layout.row_and_mask(response)

    def own(grad: Tensor) -> Tensor:
        found = row_of(grad, row, call)
        if mask is None:
            return found
        return torch.where(mask[:, None], found.reshape(call.layout.length, -1), 0).reshape(found.shape)

    tensors = [row_of(t, row, call) for t in saved]
    return _pulled(call, parameters, tensors, [None if grad is None else own(grad) for grad in grads])


def _pulled(call: Call, parameters: Grads, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Grads:
    """Each parameter's gradient of ``Σ outputs · output gradients`` for one row's tensors."""
    wanted = [i for i, grad in enumerate(grads) if grad is not None]

    def run(own: Grads) -> list[Tensor]:
        outputs = _rerun(call, own, [t.clone() for t in tensors])
        return [outputs[i] for i in wanted]

    with torch.enable_grad():
        outputs, pull = vjp(run, parameters)  # type: ignore[misc]
        return pull([grads[i].to(o.dtype) for i, o in zip(wanted, outputs, strict=True)])[0]  # type: ignore[union-attr]
