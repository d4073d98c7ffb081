"""How a token Gram's work is cut so that what stands at once fits a budget: parameters in groups, tokens in blocks.

One pass is a group of parameters. Mostly all of a pass's tiles fit together; where even one parameter's do not, its
tiles are cut in blocks and every two blocks are computed beside each other, some tiles more than once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from dyn_probe.engine.kinds import KINDS, linear
from dyn_probe.engine.parameters import output_head
from dyn_probe.engine.uses import find_uses, trained_parameters
from dyn_probe.pairs import PairBatch

Response = tuple[Tensor, Tensor]
"""One response with its prompt, without padding: ``ids [L]`` and the positions of the response tokens."""


@dataclass(frozen=True, eq=False)
class Tile:
    """Tokens that share one forward and backward: ``ids [L]`` of their sequence, their positions in it, and the Gram's
    row of the first of them."""

    ids: Tensor
    positions: Tensor
    start: int

    @property
    def rows(self) -> int:
        return len(self.positions)

    @property
    def length(self) -> int:
        """Positions of the tile's sequence: up to its last token."""
        return int(self.positions[-1]) + 1


Pass = tuple[set[str], list[list[Tile]]]
"""Parameters by name, and their tiles in blocks."""


def responses_of(batch: PairBatch, pair: int) -> tuple[Response, Response]:
    """Chosen and rejected."""
    keep = batch.attention_mask.bool()
    chosen, rejected = (
        (batch.input_ids[row][keep[row]], batch.response_mask[row][keep[row]].nonzero().flatten())
        for row in (pair, pair + batch.pairs)
    )
    return chosen, rejected


def tiles_of(responses: Sequence[Response], size: int) -> list[Tile]:
    """All responses in tiles of at most ``size`` tokens."""
    tiles, start = [], 0
    for ids, positions in responses:
        for some in positions.split(size):
            tiles.append(Tile(ids, some, start))
            start += len(some)
    return tiles


def plan(model: nn.Module, tiles: list[Tile], names: set[str], budget: int) -> list[Pass]:
    """The passes: as many parameters together as fit ``budget`` bytes; the tiles of one that does not fit in blocks
    of half the budget (two stand at once), never less than a tile."""
    costs = _costs(model, names, tiles)
    passes: list[Pass] = []
    for part in _packed([sum(cost) for cost in costs.values()], budget):
        group = list(costs)[part]
        own = costs[group[0]]
        whole = len(group) > 1 or sum(own) <= budget
        passes.append((set(group), [tiles] if whole else [tiles[some] for some in _packed(own, budget // 2)]))
    return passes


def _packed(costs: Sequence[int], most: int) -> list[slice]:
    """Neighbours together that cost ``most`` or less; one that costs more alone."""
    begins, used = [0], 0
    for k, cost in enumerate(costs):
        if k > begins[-1] and used + cost > most:
            begins.append(k)
            used = 0
        used += cost
    return [slice(begin, end) for begin, end in pairwise([*begins, len(costs)])]


def _costs(model: nn.Module, names: set[str], tiles: Sequence[Tile]) -> dict[str, list[int]]:
    """Parameter → bytes that each tile leaves for it, summed over the modules that use it (each called once)."""
    costs = {name: [0] * len(tiles) for name in trained_parameters(model) if name in names}
    head = output_head(model)
    for use in find_uses(model):
        kind = next(kind.name for kind in KINDS if kind.claims(use.module))
        for local, name in use.parameters.items():
            if name in costs:
                parameter = use.module._parameters[local]
                assert parameter is not None
                numbers = [_numbers(kind, use.module, parameter, use.module is head, tile) for tile in tiles]
                size = max(4, parameter.element_size())  # half precision is kept as float32
                costs[name] = [old + size * n for old, n in zip(costs[name], numbers, strict=True)]
    return costs


def _numbers(kind: str, module: nn.Module, parameter: Tensor, is_head: bool, tile: Tile) -> int:
    """How many numbers one tile leaves for one use of a parameter."""
    if parameter.dim() != 2 or kind not in ("linear", "embedding"):
        return tile.rows * parameter.numel()
    inputs, outputs = parameter.shape[1], parameter.shape[0]
    if kind == "embedding" or not isinstance(module, nn.Linear):
        inputs, outputs = outputs, inputs
    if is_head and outputs >= linear.WIDE:  # one live position per row
        return tile.rows * (inputs + outputs)
    return tile.rows * tile.length * outputs + tile.length * (inputs if kind == "linear" else 1)
