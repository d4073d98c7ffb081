"""Gram of rows by plain autograd on a graph that already exists (so that dropout masks are the same)."""

from __future__ import annotations

import torch


def gram_of(logps, model):
    """``[rows, rows]`` inner products of the gradients of ``logps``; the graph is kept."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for value in logps:
        grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, parameters, strict=True)]
            )
        )
    values = torch.stack(rows).double()
    return values @ values.T
