"""Errors of the fused kernel against float64, by Triton's interpreter; run as a script, since the interpreter has to be
chosen before Triton is imported."""

from __future__ import annotations

import json
import os

CASES = {
    "one pair, whole tiles": (1, 16, 32, 32),
    "three pairs, nothing divides": (3, 21, 40, 70),
    "short rows": (2, 5, 96, 33),
}
TYPES = ("float32", "float16")
TURNED = "rows in another memory order"


def errors() -> dict[str, float]:
    """Case → largest error relative to the norms."""
    import torch
    from reference.pair_blocks import pair_blocks

    from dyn_probe.engine import pair_kernel

    def error(inputs, grads) -> float:
        found, wanted = pair_kernel.entries(inputs, grads), pair_blocks(inputs, grads)
        norms = wanted.diagonal(dim1=1, dim2=2).sqrt()
        return float(((found - wanted).abs() / (norms[:, :, None] * norms[:, None])).max())

    torch.manual_seed(0)
    found = {}
    for name, (pairs, positions, p, q) in CASES.items():
        for dtype in TYPES:
            inputs, grads = (torch.randn(2 * pairs, positions, n).to(getattr(torch, dtype)) for n in (q, p))
            found[f"{name}, {dtype}"] = error(inputs, grads)
    found[TURNED] = error(*(torch.randn(9, 4, n).transpose(0, 1) for n in (33, 20)))
    return found


if __name__ == "__main__":
    assert os.environ["TRITON_INTERPRET"] == "1"
    print(json.dumps(errors()))
