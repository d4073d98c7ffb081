"""Embedding tables: token and position embeddings, also subclasses that shift the ids or scale the output.

A subclass is understood by looking up a table that names its own rows: the entry ``(1, i)`` comes back as
``(scale, scale·i)``, which gives both the ids it read and its scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyn_probe.engine.arithmetic import as32
from dyn_probe.engine.factors import Factor, Lookup
from dyn_probe.engine.module_copy import agree, module_copy
from dyn_probe.engine.uses import Call
from dyn_probe.errors import UnsupportedUse


def claims(module: nn.Module) -> bool:
    """Embeddings by type."""
    return isinstance(module, nn.Embedding) and [n for n, p in module._parameters.items() if p is not None] == [
        "weight"
    ]


def check(call: Call) -> bool:
    """Whether the module is a lookup, scaled or not.

    Raises:
        UnsupportedUse: it renormalises its table or scales gradients by how often an entry is read.
    """
    module = call.module
    if module.max_norm is not None or module.scale_grad_by_freq:
        raise UnsupportedUse(
            f"{call.use.name}: an embedding with max_norm or scale_grad_by_freq has no per-row gradient"
        )
    ids, scale = _read(call)
    return bool(scale) and agree(call.outputs[0], F.embedding(ids, module.weight) * scale)


def keep(call: Call) -> bool:
    """Keep the ids that were read, and the scale."""
    ids, scale = _read(call)
    if ids.shape != call.outputs[0].shape[:-1]:
        return False
    ids = _per_response(ids, call)
    call.saved = (ids,)
    call.notes.update(scale=scale, ids=ids)
    return True


def _read(call: Call) -> tuple[Tensor, float]:
    """``(ids, scale)`` that the call read; a scale of 0 where the module is no lookup."""
    module, output = call.module, call.outputs[0]
    if type(module).forward is nn.Embedding.forward:
        return call.args[0] if call.args else call.kwargs["input"], 1.0
    entries = torch.arange(module.num_embeddings, dtype=torch.float64, device=output.device)
    named = module_copy(module, weight=torch.stack([torch.ones_like(entries), entries], 1))
    found = named.forward(*call.args, **call.kwargs)
    if not isinstance(found, Tensor) or found.shape[-1] != 2 or not bool((found[..., 0] == found.flatten()[0]).all()):
        return output.new_zeros(output.shape[:-1]).long(), 0.0
    scale = float(found.flatten()[0])
    return (found[..., 1] / scale).round().long() if scale else found[..., 1].long(), scale


def _per_response(ids: Tensor, call: Call) -> Tensor:
    """Ids ``[responses, positions]``. A table that was read once for the whole batch is read by every row."""
    rows, length = call.layout.rows, call.layout.length
    shared = rows > 1 and ids.shape in ((1, length), (length,))
    if shared and not (ids.dim() == 1 and length == rows):
        call.notes["per_batch"] = True
        ids = ids.expand(rows, length)
    if ids.shape == (rows, length) and call.layout.places is None:
        return ids
    return call.layout.by_response(ids.unsqueeze(-1)).squeeze(-1)


def factors(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> dict[str, Factor]:
    """The table's gradient as a lookup; the padding entry gets none, as in ``torch.nn.Embedding``."""
    assert grads[0] is not None
    ids, deltas = saved[0], call.layout.by_response(grads[0])
    if call.notes["scale"] != 1.0:
        deltas = as32(deltas) * call.notes["scale"]
    if call.module.padding_idx is not None:
        deltas = deltas.masked_fill((ids == call.module.padding_idx).unsqueeze(-1), 0.0)
    return {"weight": Lookup(deltas, ids, call.module.num_embeddings)}
