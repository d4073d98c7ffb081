"""How far reweighted gradients are from those of autograd."""

from __future__ import annotations

import torch

from dyn_probe import sequence_logps
from dyn_probe.engine.recording import Recording


def worst(model, wanted) -> float:
    """Largest difference of ``.grad`` from ``{name: gradient}``, relative to the largest entry of all."""
    scale = max(float(g.abs().max()) for g in wanted.values())
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    got = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
    return max(float((got[n].flatten() - wanted[n].flatten()).abs().max()) for n in wanted) / scale


def reweighting_error(model, batch, coefficients, factor=1.0) -> float:
    """Of ``Σ_i c_i g_i`` from what the taps held, against the gradient of ``Σ_i c_i logp_i``."""
    with Recording(model) as recording:
        logps = sequence_logps(model, batch)
        recording.watch(logps)
        recording.measure()
        recording.reweight(factor * coefficients)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    loss = (coefficients * sequence_logps(model, batch)).sum()
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    wanted = [torch.zeros_like(p) if g is None else g for p, g in zip(named.values(), grads, strict=True)]
    return worst(model, dict(zip(named, wanted, strict=True)))


def coefficients(rows: int) -> torch.Tensor:
    return torch.randn(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
