"""Embedding tables: token and position embeddings, also subclasses that shift the ids or scale the output.

A subclass is understood by looking up a table that names its own rows: the entry ``(1, i)`` comes back as
``(scale, scale·i)``, which gives both the ids it read and its scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyn_probe.capture.layout import rows_first
from dyn_probe.capture.uses import Call
from dyn_probe.errors import UnsupportedUse
from dyn_probe.gram.factors import Factor, Lookup, upcast
from dyn_probe.gram.twin import agree, twin
from dyn_probe.gram.wanted import Wanted, gram


def claims(module: nn.Module) -> bool:
    """Embeddings by type."""
    return isinstance(module, nn.Embedding) and {n for n, p in module._parameters.items() if p is not None} == {
        "weight"
    }


def keep(call: Call) -> bool:
    """Keep the ids that were read, and the scale if there is one."""
    module = call.module
    assert isinstance(module, nn.Embedding)
    if module.max_norm is not None or module.scale_grad_by_freq:
        raise UnsupportedUse(
            f"{call.use.name}: an embedding with max_norm or scale_grad_by_freq has no per-row gradient"
        )
    found = _ids(call)
    if found is None:
        return False
    ids, scale = found
    if ids.shape != call.outputs[0].shape[:-1]:
        return False
    ids = _per_row(ids, call)
    call.saved = (ids,)
    call.notes.update(scale=scale, ids=ids)
    return True


def _ids(call: Call) -> tuple[Tensor, float] | None:
    """``(ids, scale)`` that the call read, or None if the module is no lookup."""
    module, output = call.module, call.outputs[0]
    if type(module).forward is nn.Embedding.forward:
        ids = call.args[0] if call.args else call.kwargs["input"]
        return ids, 1.0
    assert isinstance(module, nn.Embedding)
    entries = torch.arange(module.num_embeddings, dtype=torch.float64, device=output.device)
    named = twin(module, weight=torch.stack([torch.ones_like(entries), entries], 1)).forward(*call.args, **call.kwargs)
    if not isinstance(named, Tensor) or named.shape[-1] != 2 or not bool((named[..., 0] == named.flatten()[0]).all()):
        return None
    scale = float(named.flatten()[0])
    ids = (named[..., 1] / scale).round().long() if scale else named[..., 1].long()
    return (ids, scale) if scale and agree(output, F.embedding(ids, module.weight) * scale) else None


def _per_row(ids: Tensor, call: Call) -> Tensor:
    """Ids ``[rows, positions]``. A table that was read once for the whole batch is read by every row."""
    shared = call.rows > 1 and ids.shape in ((1, call.length), (call.length,))
    if shared and not (ids.dim() == 1 and call.length == call.rows):
        call.notes["per_batch"] = True
        return ids.expand(call.rows, call.length)
    return rows_first(ids.unsqueeze(-1), call.rows, call.length).squeeze(-1)


def factors(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> dict[str, Factor]:
    """The table's gradient as a lookup; the padding entry gets none, as in ``torch.nn.Embedding``."""
    assert isinstance(call.module, nn.Embedding) and grads[0] is not None
    ids, deltas = saved[0], rows_first(grads[0], call.rows, call.length)
    if call.notes["scale"] != 1.0:
        deltas = upcast(deltas) * call.notes["scale"]
    if call.module.padding_idx is not None:
        deltas = deltas.masked_fill((ids == call.module.padding_idx).unsqueeze(-1), 0.0)
    return {"weight": Lookup(ids, deltas, call.module.num_embeddings)}


def scattered(lookup: Lookup, group: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``(columns [U], values [n, U, d])``: the group's gradients on the entries that the group reads at all."""
    rows = torch.tensor(list(group), device=lookup.ids.device)
    columns, where = torch.unique(lookup.ids[rows], return_inverse=True)
    grads = upcast(lookup.grads[rows])
    values = grads.new_zeros(len(group), len(columns), grads.shape[-1])
    values.scatter_add_(1, where.unsqueeze(-1).expand_as(grads), grads)
    return columns, values


def reduce(lookup: Lookup, wanted: Wanted) -> Tensor:
    """The wanted inner products: entries met by two rows multiply."""
    return wanted.of_groups([gram(scattered(lookup, group)[1].flatten(1)) for group in wanted.groups()])
