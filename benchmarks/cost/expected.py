"""What recording should add to a step by the cost model: operations of the linear uses alone, no launches, no memory.

With R rows of T positions, a use of a weight ``[p, q]`` takes 6RTpq operations of a step (forward, input gradient,
weight gradient). Recording it beside autograd's weight gradient takes min(2RTpq, 2RT²(p + q)): the rows' gradients
formed tile by tile, or the pairs' token Grams (three per pair, those of the norms half by symmetry); in one pass it
takes nothing. Of the head only the positions that predict a response token are used. The step also has attention's
products, 12T² × width for a row and layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from cost.shapes import SHAPES


def linear_sizes(model: Any) -> Iterator[tuple[int, int, bool]]:
    """``(p, q, whether it is the head)`` of every linear use."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            yield int(module.weight.shape[0]), int(module.weight.shape[1]), module is head  # type: ignore[union-attr]


def expected_ratio(shape: str, length: int) -> float:
    """A step recorded beside exact training over the plain one, whatever the number of pairs; half of a row is
    response. In one pass it is 1."""
    with torch.device("meta"):
        model = SHAPES[shape]()
    step = 12 * model.config.num_hidden_layers * length**2 * model.config.hidden_size
    extra = 0.0
    for p, q, head in linear_sizes(model):
        used = length / 2 if head else length
        step += 6 * length * p * q
        extra += min(2 * used * p * q, 2 * used**2 * (p + q))
    return 1 + extra / step
