"""Errors of the fused kernels against float64, by Triton's interpreter; run as a script, since the interpreter has to
be chosen before Triton is imported."""

from __future__ import annotations

import json
import os

CASES = {
    "one pair, whole tiles": (1, 16, 32, 32),
    "three pairs, nothing divides": (3, 21, 40, 70),
    "short rows": (2, 5, 96, 33),
    "few inputs": (2, 19, 50, 4),
    "few outputs": (2, 19, 3, 50),
}
NORMS = {
    "one position at once": (2, 7, 40, True),
    "several rows and parts": (3, 70, 33, False),
    "layer": (2, 70, 8, True),
}
TYPES = ("float32", "float16")
TURNED = "rows in another memory order"
EPS = 1e-3


def pair_errors() -> dict[str, float]:
    """Case → largest error relative to the norms, of the pairs' products and of the sum of all rows."""
    import torch
    from reference.pair_blocks import pair_blocks

    from dyn_probe.engine.kernels import pair_kernel

    def error(inputs, grads, live=None) -> float:
        wanted = pair_blocks(inputs, grads)
        found, total = pair_kernel.launched(inputs, grads, live, True)
        assert torch.equal(found, pair_kernel.launched(inputs, grads, live)[0])
        found = found.view(-1, 2, 2)
        summed = grads.double().flatten(0, 1).T @ inputs.double().flatten(0, 1)
        norms = wanted.diagonal(dim1=1, dim2=2).sqrt()
        products = float(((found - wanted).abs() / (norms[:, :, None] * norms[:, None])).max())
        return max(products, float((total - summed).norm() / summed.norm()))

    found = {}
    for name, (pairs, positions, p, q) in CASES.items():
        for dtype in TYPES:
            inputs, grads = (torch.randn(2 * pairs, positions, n).to(getattr(torch, dtype)) for n in (q, p))
            found[f"{name}, {dtype}"] = error(inputs, grads)
    found[TURNED] = error(*(torch.randn(9, 4, n).transpose(0, 1) for n in (33, 20)))
    inputs, grads = (torch.randn(6, 37, n) for n in (33, 20))
    live = torch.tensor([[0, 37], [3, 20], [36, 37], [5, 5], [0, 1], [17, 34]], dtype=torch.int32)
    for row, (first, last) in zip(grads, live, strict=True):
        row[:first], row[last:] = 0, 0
    found["live positions"] = error_of_live(error, inputs, grads, live)
    return found


def known_errors() -> dict[str, float]:
    """Case → largest error, relative to norms, of all that the kernel with a metric and directions gives."""
    import torch

    from dyn_probe.engine.kernels import pair_kernel

    found = {}
    for name, (pairs, positions, p, q) in CASES.items():
        for dtype, count, weighed in (("float32", 0, False), ("float32", 1, True), ("float16", 3, True)):
            inputs, grads = (torch.randn(2 * pairs, positions, n).to(getattr(torch, dtype)) for n in (q, p))
            metric = torch.rand(p, q) ** 4 * 1e3 if weighed else None
            directions = [torch.randn(q, p).mT for _ in range(count)]
            wanted = known_twin(inputs, grads, metric, directions)
            numbers, total = pair_kernel.launched(inputs, grads, None, True, metric, directions)
            alone, nothing = pair_kernel.launched(inputs, grads, None, False, metric, directions)
            assert nothing is None and total is not None and torch.equal(alone, numbers)
            summed = grads.double().flatten(0, 1).T @ inputs.double().flatten(0, 1)
            errors = (numbers - wanted).abs() / pair_kernel.sizes(wanted, weighed, directions)
            found[f"{name}, {dtype}, {count}"] = max(
                float(errors.max()), float((total - summed).norm() / summed.norm())
            )
    return found


def known_twin(inputs, grads, metric, directions):
    """What ``pair_kernel.columns`` gives (float64), from gradients that are written down, entry by entry."""
    import torch

    rows = [b.double().T @ a.double() for a, b in zip(inputs, grads, strict=True)]
    half, known = len(rows) // 2, [] if metric is None else [metric.double()]
    found = []
    for w, l in zip(rows[:half], rows[half:], strict=True):  # noqa: E741
        own = [(one * weights * other).sum() for weights in (1.0, *known) for one in (w, l) for other in (w, l)]
        found.append(torch.stack([*own, *((g * d.double()).sum() for g in (w, l) for d in directions)]))
    return torch.stack(found)


def error_of_live(error, inputs, grads, live) -> float:
    """A row without any live position has no norm to compare with: its entries must be zero."""
    from dyn_probe.engine.kernels import pair_kernel

    assert not pair_kernel.launched(inputs, grads, live)[0].view(-1, 2, 2)[0, 1].any()
    rows = [1, 2, 4, 5]
    return error(inputs[rows], grads[rows], live[rows].contiguous())


def norm_errors() -> dict[str, float]:
    """Case → largest error relative to a row's gradient."""
    import torch

    from dyn_probe.engine.kernels import norm_kernel

    found = {}
    for name, (rows, positions, features, layer) in NORMS.items():
        for dtype in TYPES:
            x, b = (torch.randn(rows, positions, features).to(getattr(torch, dtype)) for _ in range(2))
            wide = x.double() - x.double().mean(-1, keepdim=True) if layer else x.double()
            hats = wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt()
            wanted = torch.stack([(b.double() * hats).sum(1), b.double().sum(1)])
            sums = norm_kernel.sums(x, b, layer, EPS)
            found[f"{name}, {dtype}"] = float(((sums - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())
    return found


if __name__ == "__main__":
    assert os.environ["TRITON_INTERPRET"] == "1"
    import torch

    torch.manual_seed(0)
    print(json.dumps({"pairs": pair_errors(), "known": known_errors(), "norms": norm_errors()}))
