"""Token figures: readable for 5 and for 200 tokens, whatever stands in the tokens; bars that add up."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from token_samples import SUFFIX, heat_of, label_heat, long_heat
from token_traces import trace_of

from dyn_probe.report.figures import FIGURES, figures_for
from dyn_probe.report.figures.token_parts import COLOURS, leading_groups, mean_parts
from dyn_probe.report.style import DIVERGING, name_panel
from dyn_probe.report.token_draw import LABELLED, heat_figure, heats_figure, named_places, spread_steps, tick_text
from dyn_probe.token_analysis import REGIONS, recorded_heats, region_inner
from dyn_probe.trace.reader import Trace

NAMES = ("token_heat", "token_evolution", "token_parts")
ODD = ("$a_{", "</script>", "\u4e2d\u6587", "\n\n", "", "\u202e", "&amp;", "x" * 60)
HEATS = {
    "5": lambda: label_heat(tail=SUFFIX[:4]),
    "200": long_heat,
    "odd": lambda: heat_of(("good", *ODD), ("bad", *ODD)),
    "unequal": lambda: heat_of(("a", "b"), tuple("abcdefghij")),
    "one": lambda: heat_of(("a",), ("b",)),
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    steps, pairs = (0, 5, 10, 15, 20, 25, 30, 35), ("p0", "p1")
    return trace_of(tmp_path_factory.mktemp("r") / "run", [label_heat(s, p) for s in steps for p in pairs])


@pytest.mark.parametrize("kind", HEATS)
@pytest.mark.filterwarnings("error")
def test_every_kind_of_heat_map_draws(kind, tmp_path):
    heat = HEATS[kind]()
    shape = (len(heat.tokens_chosen), len(heat.tokens_rejected))
    for figure, maps in ((heat_figure(heat), 1), (heats_figure([heat] * 4), 4)):
        figure.draw_without_rendering()
        images = [image for ax in figure.axes for image in ax.images if image.get_array().shape == shape]
        assert len(images) == maps
    trace = trace_of(tmp_path / "run", [heat])
    for name in NAMES:
        figure = FIGURES[name].draw(trace)
        figure.draw_without_rendering()
        assert any(ax.has_data() for ax in figure.axes), name


def overlaps(labels, renderer, along: int) -> int:
    """How many neighbouring tick labels overlap."""
    boxes = [label.get_window_extent(renderer).extents[[along, along + 2]] for label in labels]
    return sum(max(a) > min(b) + 1 and max(b) > min(a) + 1 for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("kind", ["5", "200", "odd"])
def test_tick_labels_do_not_touch(kind):
    figure = heat_figure(HEATS[kind]())
    figure.draw_without_rendering()
    ax, renderer = figure.axes[0], figure._get_renderer()
    assert overlaps(ax.get_yticklabels(), renderer, 1) == overlaps(ax.get_xticklabels(), renderer, 0) == 0
    ax.tick_params(labelsize=40)
    figure.draw_without_rendering()
    assert overlaps(ax.get_yticklabels(), renderer, 1) > 0


def test_a_map_shows_the_cosines_around_zero_with_their_tokens():
    heat = label_heat()
    ax = heat_figure(heat).axes[0]
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), heat.cosine)
    assert image.get_clim() == (-1, 1) and image.get_cmap().name == DIVERGING
    assert [t.get_text() for t in ax.get_yticklabels()][:3] == ["Positive", "␣sentiment", "␣based"]
    assert ax.get_xlabel() == "rejected token" and ax.get_ylabel() == "chosen token"
    assert len(ax.texts) == heat.cosine.size
    assert not heat_figure(long_heat()).axes[0].texts


def test_a_title_is_no_formula():
    odd = r"wte$|\frac$"
    heat_figure(label_heat(), odd).draw_without_rendering()
    figure = Figure()
    name_panel(figure.subplots(), odd)
    with pytest.raises(ValueError, match="frac"):
        figure.draw_without_rendering()


def test_labels_thin_out():
    assert named_places(5) == [0, 1, 2, 3, 4]
    assert len(named_places(200)) <= LABELLED and named_places(200)[1] == 4
    assert tick_text("\u4e2d") == "U+4E2D" and tick_text("\n") == "⏎" and len(tick_text("y" * 99)) == 14


def test_steps_are_spread_over_the_run():
    heats = [label_heat(step) for step in range(0, 100, 5)]
    assert [heat.step for heat in spread_steps(heats, 3)] == [0, 50, 95]
    assert spread_steps(heats[:2]) == heats[:2]


def test_evolution_has_one_pair_at_six_steps(trace: Trace):
    titles = [ax.get_title(loc="left") for ax in FIGURES["token_evolution"].draw(trace).axes if ax.images]
    assert len(titles) == 6 and titles[0] == "step 0" and titles[-1] == "step 35"


def test_bars_are_the_parts_and_add_up(trace: Trace):
    heats = recorded_heats(trace.tokens)
    left = FIGURES["token_parts"].draw(trace).axes[0]
    wanted = mean_parts(heats)
    bars = {c.get_label(): [p.get_height() for p in c.patches] for c in left.containers}
    for name in REGIONS:
        np.testing.assert_allclose(bars[name], [row[name] for row in wanted.values()])
    by_hand = np.mean([region_inner(h)["after"] for h in heats if h.step == 5])
    assert wanted[5]["after"] == pytest.approx(by_hand)
    sums = next(line for line in left.lines if line.get_label() == "sum").get_ydata()
    np.testing.assert_allclose(sums, np.sum([bars[name] for name in REGIONS], 0))
    assert set(COLOURS) == set(REGIONS)
    groups = leading_groups(heats, 3)
    assert [g.share for g in groups] == sorted([g.share for g in groups], reverse=True) and len(groups) == 3


def test_figures_are_shown_only_where_tokens_were_recorded(trace: Trace, tmp_path: Path):
    bare = trace_of(tmp_path / "run", [])
    assert set(NAMES) <= set(figures_for(trace)) and not set(NAMES) & set(figures_for(bare))
    for name in NAMES:
        (text,) = [t.get_text() for ax in FIGURES[name].draw(bare).axes for t in ax.texts if t.get_text()]
        assert "--tokens-every" in text.replace("\n", " ")
