"""Elementwise scales: LayerNorm and every RMSNorm, ``x̂ ∘ w`` or ``x̂ ∘ (1 + w)``, with or without a bias.

``x̂`` is read off the module itself: its output at weight one minus its output at weight zero. So no class has to be
known by name, and the styles do not differ. Where that equals a norm of torch, torch's own computes it from then on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyn_probe.engine.arithmetic import as32
from dyn_probe.engine.factors import Factor, Vector
from dyn_probe.engine.module_copy import agree, module_copy
from dyn_probe.engine.uses import Call

EPSILONS = ("eps", "variance_epsilon", "epsilon")
"""Attributes under which norms keep the number that is added to the variance."""


def claims(module: nn.Module) -> bool:
    """Modules whose only parameters are a weight and perhaps a bias of the same shape, and without children."""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    return (
        "weight" in own
        and set(own) <= {"weight", "bias"}
        and not any(True for _ in module.children())
        and all(p.shape == own["weight"].shape for p in own.values())
    )


def check(call: Call) -> bool:
    """Whether the output really is ``f(0) + w ∘ (f(1) − f(0)) + bias``; notes how ``x̂`` is computed."""
    module = call.module
    if not _fits(call):
        return False
    inputs = call.args[0]
    if type(module) is not nn.LayerNorm and not _elementwise(module, inputs, call.outputs[0]):
        return False
    call.claim.notes["hats"] = _normaliser(module, inputs)
    return True


def keep(call: Call) -> bool:
    """Keep the input."""
    if not _fits(call):
        return False
    call.layout.by_row(call.args[0], call.module.weight.dim())
    call.saved = (call.args[0],) if "weight" in call.trained else ()
    return True


def _fits(call: Call) -> bool:
    """Whether there is one input, one output of its shape, and the weight is as its last dimensions."""
    inputs, weight = call.args[0] if call.args else None, call.module.weight
    if not isinstance(inputs, Tensor) or len(call.args) != 1 or call.kwargs or len(call.outputs) != 1:
        return False
    return call.outputs[0].shape == inputs.shape and inputs.shape[inputs.dim() - weight.dim() :] == weight.shape


def _elementwise(module: Any, inputs: Tensor, output: Tensor) -> bool:
    """Whether the output is affine in the weight, entry by entry, on this input: at its own weight and at another."""
    weight = module.weight
    with torch.autocast(inputs.device.type, enabled=False):
        rest = module_copy(module, weight=torch.zeros_like(weight)).forward(inputs)
        hats = measured(module, inputs)
        other = torch.linspace(-0.7, 1.3, weight.numel(), device=weight.device).reshape(weight.shape).to(weight.dtype)
        elsewhere = module_copy(module, weight=other).forward(inputs)
        return agree(output, rest + weight * hats) and agree(elsewhere, rest + other * hats)


def _normaliser(module: Any, inputs: Tensor) -> partial[Tensor]:
    """How ``x̂`` is computed: by torch's own norm where it is the same, else by the module itself."""
    shape = tuple(module.weight.shape)
    if type(module) is nn.LayerNorm:
        return partial(F.layer_norm, normalized_shape=shape, eps=module.eps)
    with torch.autocast(inputs.device.type, enabled=False):
        sample = inputs.double()
        for name in EPSILONS:
            if isinstance(eps := getattr(module, name, None), float):
                known = partial(F.rms_norm, normalized_shape=shape, eps=eps)
                found, wanted = known(sample), measured(module, sample)
                if float((found - wanted).norm()) <= 1e-6 * float(wanted.norm()):
                    return known
    return partial(measured, module)


def measured(module: Any, inputs: Tensor) -> Tensor:
    """``x̂`` of the input, read off the module, in the input's dtype or better."""
    weight = module.weight.detach().to(inputs.dtype)
    at_one = module_copy(module, weight=torch.ones_like(weight)).forward(inputs)
    return at_one - module_copy(module, weight=torch.zeros_like(weight)).forward(inputs)


def factors(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> dict[str, Factor]:
    """Weight ``Σ_t B[t] ∘ x̂[t]``, bias ``Σ_t B[t]``: ``[responses, n]`` each."""
    assert grads[0] is not None
    outputs = call.layout.by_response(grads[0], call.module.weight.dim())
    if "weight" in call.trained and (sums := _fused(call, saved[0], outputs)) is not None:
        both = {"weight": Vector(sums[0]), "bias": Vector(sums[1])}
        return {name: factor for name, factor in both.items() if name in call.trained}
    outputs = as32(outputs)
    found: dict[str, Factor] = {}
    if "weight" in call.trained:
        found["weight"] = Vector(_scale_rows(call, saved[0], outputs).flatten(1))
    if "bias" in call.trained:
        found["bias"] = Vector(outputs.sum(1).flatten(1))
    return found


def _scale_rows(call: Call, inputs: Tensor, outputs: Tensor) -> Tensor:
    """``[responses, …]`` ``Σ_t B[t] ∘ x̂[t]``."""
    hats = call.layout.by_response(call.claim.notes["hats"](as32(inputs)), outputs.dim() - 2)
    return (outputs * hats.to(outputs.dtype)).sum(1)


def _fused(call: Call, inputs: Tensor, outputs: Tensor) -> Tensor | None:
    """Both sums of a norm of torch in one pass on a GPU; None where that cannot run."""
    hats = call.claim.notes["hats"]
    if not outputs.is_cuda or outputs.dim() != 3 or hats.func is measured or call.layout.places is not None:
        return None
    from dyn_probe.engine.kernels import norm_kernel  # brings a compiler along, which a CPU has no use for

    def slow() -> Tensor:
        wide = as32(outputs)
        return torch.stack([_scale_rows(call, inputs, wide), wide.sum(1)])

    layer, eps = hats.func is F.layer_norm, hats.keywords["eps"]
    return norm_kernel.norm_sums(call.layout.by_row(inputs), outputs, layer, eps, slow)


def alike(call: Call) -> Hashable | None:
    """How ``x̂`` is computed, where that is a norm of torch; what a module computes itself is its own."""
    hats = call.claim.notes["hats"]
    return None if hats.func is measured else (hats.func, *sorted(hats.keywords.items()))
