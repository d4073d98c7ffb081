"""How a token Gram's work is cut so that what stands at once fits a budget: parameters in groups, tokens in blocks.

One pass is a group of parameters. Mostly all of a pass's tiles fit together; where even one parameter's do not, its
tiles are cut in blocks and every two blocks are computed beside each other, some tiles more than once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dyn_probe.engine.kinds import KINDS, linear
from dyn_probe.engine.parameters import output_head
from dyn_probe.engine.uses import find_uses, trained_parameters
from dyn_probe.pairs import PairBatch


@dataclass(frozen=True, eq=False)
class Side:
    """One response with its prompt, without padding: ``ids [L]``, the positions of the response tokens, and the row of
    the Gram at which they begin."""

    ids: Tensor
    positions: Tensor
    offset: int

    @staticmethod
    def both(batch: PairBatch, pair: int) -> tuple[Side, Side]:
        """Chosen and rejected."""
        rows = []
        for row in (pair, pair + batch.pairs):
            keep = batch.attention_mask[row].bool()
            rows.append((batch.input_ids[row][keep], batch.response_mask[row][keep].nonzero().flatten()))
        chosen, rejected = rows
        return Side(*chosen, 0), Side(*rejected, len(chosen[1]))


@dataclass(frozen=True, eq=False)
class Tile:
    """Tokens ``start`` to ``stop`` of a side: they share one forward and backward."""

    side: Side
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def length(self) -> int:
        """Positions of the tile's sequence: up to its last token."""
        return int(self.side.positions[self.stop - 1]) + 1


@dataclass(frozen=True, eq=False)
class Pass:
    """Parameters by name, and their tiles in blocks."""

    names: set[str]
    blocks: Sequence[Sequence[Tile]]

    @property
    def visits(self) -> int:
        """How many tiles are computed: block k stands beside itself once and beside each block before it."""
        return sum((k + 1) * len(block) for k, block in enumerate(self.blocks))

    def pairs(self) -> Iterator[tuple[Sequence[Tile], Sequence[Sequence[Tile]]]]:
        """Each block, and those behind it."""
        for k, block in enumerate(self.blocks):
            yield block, self.blocks[k + 1 :]


def tiles_of(sides: Sequence[Side], size: int) -> list[Tile]:
    """Both sides in tiles of at most ``size`` tokens."""
    return [
        Tile(side, i, min(i + size, len(side.positions))) for side in sides for i in range(0, len(side.positions), size)
    ]


def plan(model: nn.Module, tiles: Sequence[Tile], names: set[str], budget: int) -> list[Pass]:
    """The passes: as many parameters together as fit ``budget`` bytes; the tiles of one that does not fit in blocks
    of half the budget (two stand at once), never less than a tile."""
    costs = _costs(model, names, tiles)
    groups: list[list[str]] = [[]]
    used = 0
    for name, cost in costs.items():
        if groups[-1] and used + sum(cost) > budget:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += sum(cost)
    return [
        Pass(set(group), _blocks(tiles, costs[group[0]], budget) if len(group) == 1 else [tiles]) for group in groups
    ]


def _blocks(tiles: Sequence[Tile], cost: Sequence[int], budget: int) -> list[list[Tile]]:
    if sum(cost) <= budget:
        return [list(tiles)]
    blocks: list[list[Tile]] = [[]]
    used = 0
    for tile, own in zip(tiles, cost, strict=True):
        if blocks[-1] and used + own > budget // 2:
            blocks.append([])
            used = 0
        blocks[-1].append(tile)
        used += own
    return blocks


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
