"""Linear layers (``torch.nn.Linear`` and GPT-2's transposed ``Conv1D``): weight and bias.

Two routes for the weight. Token Gram: ``Σ_{t,s} (A_i[t]·A_j[s]) (B_i[t]·B_j[s])``. Blocks: form ``B_iᵀ A_i``, some
outputs at a time, and multiply. ``cheaper_by_tokens`` chooses by arithmetic plus memory traffic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dyn_probe.capture.layout import rows_first
from dyn_probe.capture.uses import Call
from dyn_probe.gram.factors import Factor, Outer, Vector, upcast
from dyn_probe.gram.prefix import pairs_by_prefix
from dyn_probe.gram.twin import agree
from dyn_probe.gram.wanted import Wanted

WIDE = 16384
"""From this many outputs on, a linear layer is treated as a language-model head: response positions only."""
TRAFFIC = 40.0
"""Multiply-adds that take as long as moving one number to or from memory (measured 30 to 60 on CPUs and GPUs)."""
CHUNK = 1 << 24
"""Numbers of one slice of blocks (64 MiB in float32)."""


def claims(module: nn.Module) -> bool:
    """Linear layers by type; what a subclass computes is verified in ``keep``."""
    own = {name for name, p in module._parameters.items() if p is not None}
    return isinstance(module, (nn.Linear, Conv1D)) and own <= {"weight", "bias"} and "weight" in own


def keep(call: Call) -> bool:
    """Keep the input; a subclass with a forward of its own must agree with the plain formula."""
    module, (inputs, *_) = call.module, (*call.args, call.kwargs.get("input"))
    if not isinstance(inputs, Tensor) or len(call.outputs) != 1:
        return False
    if type(module) not in (nn.Linear, Conv1D) and not _agrees(module, inputs, call):
        return False
    rows_first(inputs, call.rows, call.length)
    call.saved = (inputs,) if "weight" in call.trained else ()
    return True


def _agrees(module: Any, inputs: Tensor, call: Call) -> bool:
    """Whether a subclass computes ``x Wᵀ + b``."""
    if module.forward.__func__ is nn.Linear.forward:
        return True
    return agree(call.outputs[0], F.linear(inputs, module.weight, module.bias))


def factors(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> dict[str, Factor]:
    """Weight as an outer product of input and output-gradient, bias as the sum of output-gradients."""
    assert grads[0] is not None
    outputs = rows_first(grads[0], call.rows, call.length)
    found: dict[str, Factor] = {}
    if "weight" in call.trained:
        inputs = rows_first(saved[0], call.rows, call.length)
        wide = outputs.shape[-1] >= WIDE
        found["weight"] = Outer(inputs, outputs, isinstance(call.module, Conv1D), wide, call.spans)
    if "bias" in call.trained:
        found["bias"] = Vector(summed(upcast(outputs)))
    return found


def summed(outputs: Tensor) -> Tensor:
    """``[rows, q]`` sums over positions, as a product with ones (twice as fast as ``sum`` for wide layers)."""
    return torch.bmm(outputs.new_ones(outputs.shape[0], 1, outputs.shape[1]), outputs).squeeze(1)


def reduce(outer: Outer, wanted: Wanted) -> Tensor:
    """The wanted inner products of the weight's per-row gradients, float64."""
    if outer.wide:
        return by_rows(response_rows(outer), wanted)
    inputs, outputs = upcast(outer.inputs), upcast(outer.grads)
    inputs = inputs.to(outputs.dtype)
    if wanted.full:
        return (
            full_by_tokens(inputs, outputs) if cheaper_by_tokens(outer, wanted) else by_blocks(inputs, outputs, wanted)
        )
    if not cheaper_by_tokens(outer, wanted):
        return by_blocks(inputs, outputs, wanted)
    if len(outer.spans) == wanted.pairs and inputs.device.type == "cpu":
        return pairs_by_prefix(inputs, outputs, outer.spans)
    return pairs_by_tokens(inputs, outputs)


def cheaper_by_tokens(outer: Outer, wanted: Wanted) -> bool:
    """Whether token Grams cost less than blocks: multiply-adds plus ``TRAFFIC`` times numbers moved."""
    rows, length, p = outer.inputs.shape
    q = outer.grads.shape[-1]
    products = rows * rows if wanted.full else 1.5 * rows
    tokens = products * length * length * (p + q + TRAFFIC)
    blocks = rows * length * p * q + (rows * rows if wanted.full else 0) * p * q + 3 * TRAFFIC * rows * p * q
    return tokens <= blocks


def pairs_by_tokens(inputs: Tensor, outputs: Tensor) -> Tensor:
    """``[pairs, 3]`` by token Grams."""
    half = inputs.shape[0] // 2
    squared = _token_products(inputs, outputs, inputs, outputs)
    inner = _token_products(inputs[:half], outputs[:half], inputs[half:], outputs[half:])
    return torch.stack([squared[:half], squared[half:], inner], 1)


def _token_products(a_left: Tensor, b_left: Tensor, a_right: Tensor, b_right: Tensor) -> Tensor:
    """``[n]``: Σ_{t,s} (A[t]·A'[s]) (B[t]·B'[s]) for each n (METHODS law 2), float64."""
    n, length, _ = a_left.shape
    step = max(1, CHUNK // max(1, 2 * length * length))
    parts = []
    for i in range(0, n, step):
        j = slice(i, i + step)
        tokens = torch.bmm(a_left[j], a_right[j].mT).flatten(1)
        parts.append((tokens * torch.bmm(b_left[j], b_right[j].mT).flatten(1)).sum(1))
    return torch.cat(parts).double()


def full_by_tokens(inputs: Tensor, outputs: Tensor) -> Tensor:
    """``[rows, rows]`` by token Grams, one row against all at a time."""
    rows, length, _ = inputs.shape
    a_all, b_all = inputs.flatten(0, 1), outputs.flatten(0, 1)
    return torch.stack(
        [
            ((a_i @ a_all.T) * (b_i @ b_all.T)).view(length, rows, length).sum((0, 2))
            for a_i, b_i in zip(inputs, outputs, strict=True)
        ]
    ).double()


def by_blocks(inputs: Tensor, outputs: Tensor, wanted: Wanted) -> Tensor:
    """The wanted products from each row's ``B_iᵀ A_i``, a slice of outputs at a time."""
    rows, _, p = inputs.shape
    answer = torch.zeros(wanted.shape(), dtype=torch.float64, device=inputs.device)
    width = max(1, CHUNK // max(1, rows * p))
    for j in range(0, outputs.shape[-1], width):
        blocks = torch.bmm(outputs[:, :, j : j + width].mT, inputs).flatten(1)
        answer += wanted.of_rows(blocks)
    return answer


def response_rows(outer: Outer) -> list[tuple[Tensor, Tensor]]:
    """Each row's ``(A_i, B_i)`` cut to the span of positions that have a gradient: a head has one only where a
    response token is predicted."""
    alive = ~((outer.grads.amax(-1) == 0) & (outer.grads.amin(-1) == 0))  # NaN counts as alive
    positions = torch.arange(alive.shape[1], device=alive.device)
    first = torch.where(alive, positions, alive.shape[1]).amin(1).tolist()
    last = torch.where(alive, positions, -1).amax(1).tolist()
    return [
        (outer.inputs[i, low : high + 1], outer.grads[i, low : high + 1])
        if high >= low
        else (outer.inputs[i, :1], outer.grads[i, :1])
        for i, (low, high) in enumerate(zip(first, last, strict=True))
    ]


def by_rows(rows: Sequence[tuple[Tensor, Tensor]], wanted: Wanted) -> Tensor:
    """The wanted products by token Grams of rows of unequal length."""
    values = []
    for i, j in wanted.combos():
        (a_i, b_i), (a_j, b_j) = rows[i], rows[j]
        outputs = upcast(b_i) @ upcast(b_j).T
        values.append(((upcast(a_i) @ upcast(a_j).T).to(outputs.dtype) * outputs).sum())
    return wanted.from_combos(torch.stack(values).double())
