"""Elementwise scales: LayerNorm and every RMSNorm, ``x̂ ∘ w`` or ``x̂ ∘ (1 + w)``, with or without a bias.

``x̂`` is read off the module itself: its output at weight one minus its output at weight zero. So no class has to be
known by name, and the styles do not differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyn_probe.capture.layout import rows_first
from dyn_probe.capture.uses import Call
from dyn_probe.gram.factors import Factor, Vector, upcast
from dyn_probe.gram.twin import agree, twin


def claims(module: nn.Module) -> bool:
    """Modules whose only parameters are a weight and perhaps a bias of the same shape, and without children."""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    return (
        "weight" in own
        and set(own) <= {"weight", "bias"}
        and not any(True for _ in module.children())
        and all(p.shape == own["weight"].shape for p in own.values())
    )


def keep(call: Call) -> bool:
    """Keep the input, if the output really is ``f(0) + w ∘ (f(1) − f(0)) + bias``."""
    module, inputs = call.module, call.args[0] if call.args else None
    if not isinstance(inputs, Tensor) or len(call.args) != 1 or call.kwargs or len(call.outputs) != 1:
        return False
    weight = module.weight
    assert isinstance(weight, Tensor)
    output = call.outputs[0]
    if output.shape != inputs.shape or inputs.shape[inputs.dim() - weight.dim() :] != weight.shape:
        return False
    if type(module) is not nn.LayerNorm and not _elementwise(module, inputs, weight, output):
        return False
    rows_first(inputs, call.rows, call.length, weight.dim())
    call.saved = (inputs,) if "weight" in call.trained else ()
    return True


def _elementwise(module: nn.Module, inputs: Tensor, weight: Tensor, output: Tensor) -> bool:
    """Whether the output is affine in the weight, entry by entry, on this input: at its own weight and at another."""
    with torch.autocast(inputs.device.type, enabled=False):
        rest, hats = twin(module, weight=torch.zeros_like(weight)).forward(inputs), normalised(module, inputs)
        other = torch.linspace(-0.7, 1.3, weight.numel(), device=weight.device).reshape(weight.shape).to(weight.dtype)
        elsewhere = twin(module, weight=other).forward(inputs)
        return agree(output, rest + weight * hats) and agree(elsewhere, rest + other * hats)


def normalised(module: nn.Module, inputs: Tensor) -> Tensor:
    """``x̂`` of the input, in the input's dtype or better."""
    if type(module) is nn.LayerNorm:
        return F.layer_norm(inputs, module.normalized_shape, None, None, module.eps)
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach().to(inputs.dtype)
    at_one = twin(module, weight=torch.ones_like(weight)).forward(inputs)
    return at_one - twin(module, weight=torch.zeros_like(weight)).forward(inputs)


def factors(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> dict[str, Factor]:
    """Weight ``Σ_t B[t] ∘ x̂[t]``, bias ``Σ_t B[t]``: ``[rows, n]`` each."""
    weight = call.module.weight
    assert isinstance(weight, Tensor) and grads[0] is not None
    features = weight.dim()
    outputs = upcast(rows_first(grads[0], call.rows, call.length, features))
    found: dict[str, Factor] = {}
    if "weight" in call.trained:
        with torch.no_grad():
            hats = rows_first(normalised(call.module, upcast(saved[0])), call.rows, call.length, features)
        found["weight"] = Vector((outputs * hats.to(outputs.dtype)).sum(1).flatten(1))
    if "bias" in call.trained:
        found["bias"] = Vector(outputs.sum(1).flatten(1))
    return found
