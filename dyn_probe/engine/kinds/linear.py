"""Linear layers (``torch.nn.Linear`` and GPT-2's transposed ``Conv1D``): weight and bias."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dyn_probe.engine.arithmetic import HALF, as32
from dyn_probe.engine.factors import Factor, Outer, Vector
from dyn_probe.engine.module_copy import agree
from dyn_probe.engine.uses import Call

FEW = 1 << 20
"""Numbers up to which a sum is taken as such."""
WIDE = 16384
"""From this many outputs on, a layer may be a language-model head: only positions that have a gradient are kept."""


def claims(module: nn.Module) -> bool:
    """Linear layers by type; what a subclass computes is verified in ``check``."""
    own = {name for name, p in module._parameters.items() if p is not None}
    return isinstance(module, (nn.Linear, Conv1D)) and own <= {"weight", "bias"} and "weight" in own


def check(call: Call) -> bool:
    """Whether a subclass computes ``x Wᵀ + b``."""
    module, inputs = call.module, _input(call)
    if inputs is None:
        return False
    if type(module) in (nn.Linear, Conv1D) or module.forward.__func__ is nn.Linear.forward:
        return True
    return agree(call.outputs[0], F.linear(inputs, module.weight, module.bias))


def keep(call: Call) -> bool:
    """Keep the input."""
    inputs = _input(call)
    if inputs is None:
        return False
    call.layout.by_row(inputs)
    call.saved = (inputs,) if "weight" in call.trained else ()
    return True


def _input(call: Call) -> Tensor | None:
    """The call's one input, where it has one output."""
    found = call.args[0] if call.args else call.kwargs.get("input")
    return found if isinstance(found, Tensor) and len(call.outputs) == 1 else None


def factors(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> dict[str, Factor]:
    """Weight as an outer product of input and output-gradient, bias as the sum of output-gradients."""
    assert grads[0] is not None
    outputs = call.layout.by_response(grads[0])
    found: dict[str, Factor] = {}
    if "weight" in call.trained:
        inputs = call.layout.by_response(saved[0])
        cut, where = False, None
        if outputs.shape[-1] >= WIDE and outputs.device.type == "cpu":
            inputs, outputs, cut = live(inputs, outputs)
        elif outputs.shape[-1] >= WIDE:
            where = live_range(outputs)
        whole = outputs.shape[1] == call.layout.length
        found["weight"] = Outer(
            outputs, inputs, isinstance(call.module, Conv1D), call.layout.spans if whole and not cut else (), cut, where
        )
    if "bias" in call.trained:
        found["bias"] = Vector(summed(outputs))
    return found


def alike(call: Call) -> Hashable:
    """Whether the weight is stored as ``[inputs, outputs]``."""
    return isinstance(call.module, Conv1D)


def summed(outputs: Tensor) -> Tensor:
    """``[rows, q]`` sums over positions in float32 or better."""
    if outputs.numel() <= FEW or outputs.device.type != "cpu":
        return outputs.sum(1, dtype=torch.float32 if outputs.dtype in HALF else None)
    outputs = as32(outputs)  # as a product with ones, twice as fast for wide layers
    return torch.bmm(outputs.new_ones(outputs.shape[0], 1, outputs.shape[1]), outputs).squeeze(1)


def live_range(outputs: Tensor) -> Tensor:
    """``[rows, 2]`` (int32) the positions of ``live``, ``[first, last)``, where reading them would stop the device."""
    first, last = _first_and_last(outputs)
    return torch.stack([torch.minimum(first, last + 1), last + 1], 1)


def _first_and_last(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """``[rows]`` (int32) each row's first and last position with a gradient; the end and -1 where it has none."""
    alive = ~((outputs.amax(-1) == 0) & (outputs.amin(-1) == 0))  # NaN counts as alive
    positions = torch.arange(alive.shape[1], device=alive.device, dtype=torch.int32)
    first = torch.where(alive, positions, alive.shape[1] - 1).amin(1)
    return first, torch.where(alive, positions, -1).amax(1)


def live(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor, bool]:
    """``(A, B)`` at each row's positions from the first to the last that has a gradient, filled up with zeros, and
    whether these are different positions in different rows.

    A head has a gradient only where a response token is predicted.
    """
    first, last = _first_and_last(outputs)
    width = int((last - first).amax().clamp(min=0)) + 1
    if bool((first == first[0]).all()):
        cut = slice(int(first[0]), int(first[0]) + width)
        return inputs[:, cut], outputs[:, cut], False
    at = first[:, None] + torch.arange(width)
    rows, beyond = torch.arange(len(at))[:, None], (at > last[:, None])[..., None]
    at = at.clamp(max=outputs.shape[1] - 1)
    return inputs[rows, at], outputs[rows, at].masked_fill(beyond, 0), True
