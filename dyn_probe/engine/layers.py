"""How parameters add up to layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor, nn

from dyn_probe.engine.uses import Use

Values = TypeVar("Values", np.ndarray, Tensor)

_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Layer:
    """A layer's label and its place from input to output."""

    label: str
    depth: int


def layers_of(names: Sequence[str], uses: Sequence[Use]) -> dict[str, Layer]:
    """Parameter name → layer: ``embedding``, the block's number, ``final_norm`` or ``head``.

    A tied head counts as ``embedding``. Parameters before the first block that are no embedding count as
    ``embedding`` too, those behind the last one as ``final_norm`` unless they belong to a wide linear head.
    """
    embeddings = {n for use in uses if isinstance(use.module, nn.Embedding) for n in use.parameters.values()}
    blocks = {name: int(m.group(1)) for name in names if (m := _BLOCK.search(name))}
    last = max(blocks.values(), default=-1)
    first_block = next((i for i, n in enumerate(names) if n in blocks), len(names))
    final = {n for use in uses if not isinstance(use.module, nn.Linear) for n in use.parameters.values()}
    layers = {}
    for i, name in enumerate(names):
        if name in blocks:
            layers[name] = Layer(str(blocks[name]), blocks[name] + 1)
        elif name in embeddings or i < first_block:
            layers[name] = Layer("embedding", 0)
        elif name in final:
            layers[name] = Layer("final_norm", last + 2)
        else:
            layers[name] = Layer("head", last + 3)
    return layers


def sum_layers(values: Values, layers: Sequence[Layer]) -> dict[Layer, Values]:
    """Sums over the parameters of each layer, in order of depth.

    Args:
        values: ``[P, …]``, by parameter.
        layers: of each of the ``P`` parameters.
    """
    places: dict[Layer, list[int]] = {}
    for place, layer in enumerate(layers):
        places.setdefault(layer, []).append(place)
    return {layer: values[places[layer]].sum(0) for layer in sorted(places, key=lambda layer: layer.depth)}
