"""The cost model's curve, and the figures of growth."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
import torch
from cost.cells import DEFAULT, Cell
from cost.expected import expected_ratio
from cost.growth import growth, panels, points
from cost.shapes import SHAPES


def kept(cell: Cell, ratio: float) -> dict:
    found = {name: {"ratio": ratio, "least": ratio - 0.01, "most": ratio + 0.02} for name in ("recorded", "one pass")}
    return {"cell": cell.name, "kinds": {"plain": {"ratio": 1.0}} | found}


@pytest.mark.parametrize("length", [16, 300, 5000])
def test_the_model_counts_operations_use_by_use(length):
    """GPT-2 small, written out: four linear uses a layer, the head at half of the positions."""
    sizes = 12 * [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
    step = 12 * 12 * length**2 * 768 + sum(6 * length * p * q for p, q in [*sizes, (50257, 768)])
    extra = sum(min(2 * length * p * q, 2 * length**2 * (p + q)) for p, q in sizes)
    extra += min(length * 50257 * 768, length**2 / 2 * (50257 + 768))
    assert expected_ratio("gpt2-small", length) == pytest.approx(1 + extra / step, rel=1e-12)


def test_long_rows_cost_at_most_a_third_and_short_ones_nearly_nothing():
    assert 1.25 < expected_ratio("llama-3.2-1b", 2000) < 4 / 3
    assert expected_ratio("llama-3.2-1b", 8) < 1.01


def test_shapes_have_the_sizes_of_their_models():
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in SHAPES[name]().parameters()) / 1e6 for name in SHAPES}
    assert 123 < sizes["gpt2-small"] < 126 and 490 < sizes["qwen2.5-0.5b"] < 498 and 1230 < sizes["llama-3.2-1b"] < 1240


@pytest.mark.parametrize("kind", DEFAULT)
def test_every_panel_has_its_default_cells(kind):
    everything = [kept(cell, 1.1) for cell in DEFAULT[kind] if isinstance(cell, Cell)]
    places = [[place for place, *_ in points(everything, panel)] for panel in panels(kind)]
    assert all(len(set(found)) >= 3 and found == sorted(found) for found in places), places
    assert places[0][-1] >= 1024


def test_the_figure_shows_what_was_measured():
    cells = [Cell("gpt2-small", "all", length, 4, "float32") for length in (64, 256)]
    figure = growth([kept(cell, ratio) for cell, ratio in zip(cells, (1.1, 1.3), strict=True)], "cpu")
    assert len(figure.axes) == 1
    drawn = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert [1.1, 1.3] in drawn
    assert [pytest.approx(expected_ratio("gpt2-small", length)) for length in (64, 256)] in drawn
    plt.close(figure)
    empty = growth([], "cpu")
    assert len(empty.axes) == 1
    plt.close(empty)
