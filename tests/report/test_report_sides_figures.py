"""The laws of sides, over every figure: exchanging chosen and rejected exchanges what is drawn of them, and what is
drawn as chosen's depends on chosen alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, PolyCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from sides import OTHER, SIDES, traces_of, two_sided_tables

from dyn_probe.report.basis import case_of, completed
from dyn_probe.report.figures import COMPARISONS, FIGURES
from dyn_probe.report.figures.case_shares import case_shares
from dyn_probe.report.frames import step_bins
from dyn_probe.report.style import CASE_COLOURS, CHOSEN, INK, NEUTRAL, PUSH_COLOURS, REJECTED, SIDE_COLOURS
from dyn_probe.trace.reader import Trace

Drawn = dict[str, list[np.ndarray]]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    """The runs that the laws compare."""
    return traces_of(tmp_path_factory.mktemp("runs"), two_sided_tables())


def side_of(title: str, colour: str) -> str:
    """Whose an artist is: that of its panel, or of its colour."""
    for side in SIDES:
        if title.removeprefix("Δ ").casefold().startswith(side):
            return side
    return {CHOSEN: "chosen", REJECTED: "rejected"}.get(colour.upper(), "neither")


def drawn(figure: Figure) -> Drawn:
    """All numbers and words that a figure draws, by side."""
    found: Drawn = {"chosen": [], "rejected": [], "neither": []}
    for ax in figure.axes:
        title = ax.get_title(loc="left")
        for colour, values in [*_lines(ax), *_collections(ax), *_bars(ax)]:
            found[side_of(title, colour)].append(values)
    return found


def _lines(ax):
    return [(to_hex(line.get_color()), np.asarray(line.get_ydata(), float)) for line in ax.lines]


def _collections(ax):
    for one in ax.collections:
        colours = one.get_facecolor() if len(one.get_facecolor()) else one.get_edgecolor()
        colour = to_hex(colours[0][:3]) if len(colours) else "#000000"
        if isinstance(one, QuadMesh):
            yield colour, np.ma.filled(one.get_array(), np.nan).ravel()
        elif isinstance(one, PathCollection):
            yield colour, np.asarray(one.get_offsets(), float).ravel()
        elif isinstance(one, LineCollection) and one.get_segments():
            yield colour, np.concatenate(one.get_segments()).ravel()
        elif isinstance(one, PolyCollection):
            yield colour, np.unique(one.get_paths()[0].vertices[:, 1])  # an outline repeats where it begins


def _bars(ax):
    for one in ax.patches:
        yield to_hex(one.get_facecolor()[:3]), np.array([one.get_width(), one.get_height()])


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all(
        a.shape == b.shape and np.allclose(a, b, equal_nan=True) for a, b in zip(left, right, strict=True)
    )


OWN_LAW = ("story", "cases", "pushes", "movement", "margin", "token_heat", "token_evolution", "predicted")
"""Figures whose sides are axes, the two ends of a matrix, or signs: each has a test of its own below."""
RATIOS = ("pulls", "grad_norms", "effective_magnitudes")
"""Figures with a ratio of the two sides, which becomes its reciprocal: its formula has a slow twin."""
SIGNED = ("pulls", "effective_magnitudes")
"""Figures of pulls, which change their signs where the sides are exchanged."""
SIDELESS = ("clipping", "squeezing_toy", "layers", "token_parts")
PLAIN = [name for name in FIGURES if name not in (*OWN_LAW, *SIDELESS)]
ANCHORED = [name for name in PLAIN if name != "entanglement"]  # whose conditions hold both sides


@pytest.mark.parametrize("name", [*PLAIN, *SIDELESS])
def test_exchanged_sides_exchange_what_a_figure_draws(name: str, traces: dict[str, Trace]) -> None:
    plain, other = (drawn(FIGURES[name].draw(traces[run])) for run in ("plain", "exchanged"))
    sign = -1 if name in SIGNED else 1
    for side in SIDES:
        assert same([np.sort(sign * x) for x in plain[side]], [np.sort(x) for x in other[OTHER[side]]])
        assert bool(plain[side]) is (name not in SIDELESS), f"{name} draws nothing of {side}"
    assert name in RATIOS or same(plain["neither"], other["neither"])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ANCHORED)
def test_what_a_figure_draws_as_one_sides_follows_that_side_alone(
    name: str, side: str, traces: dict[str, Trace]
) -> None:
    plain, own, foreign = (drawn(FIGURES[name].draw(traces[run])) for run in ("plain", side, OTHER[side]))
    assert same(plain[side], foreign[side]), f"{side} follows {OTHER[side]}"
    assert not same(plain[side], own[side]), f"{side} does not follow {side}"


WITHOUT_SIDES = ("compare_margin", "compare_entanglement", "compare_kl")


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_of_runs_draw_each_side_in_its_own_panel(name: str, traces: dict[str, Trace]) -> None:
    runs = {run: {"a": traces["plain"], "b": traces[run]} for run in ("plain", *SIDES)}
    plain, chosen, rejected = (drawn(COMPARISONS[name].draw(runs[run])) for run in ("plain", *SIDES))
    assert same(plain["chosen"], rejected["chosen"]) and same(plain["rejected"], chosen["rejected"])
    assert bool(plain["chosen"]) is bool(plain["rejected"]) is (name not in WITHOUT_SIDES)
    if plain["chosen"]:
        assert not same(plain["chosen"], chosen["chosen"]) and not same(plain["rejected"], rejected["rejected"])


def medians(trace: Trace, values: np.ndarray) -> np.ndarray:
    """Median of each step bin, by pandas."""
    return pd.Series(np.asarray(values, float)).groupby(step_bins(trace.pairs).index).median().to_numpy()


def curve(ax: Axes, colour: str) -> np.ndarray:
    """The line of that colour with the most points."""
    lines = [line.get_ydata() for line in ax.lines if to_hex(line.get_color()).upper() == colour.upper()]
    return np.asarray(max(lines, key=len), float)


def test_the_conditions_are_drawn_for_the_side_that_they_are_of(traces: dict[str, Trace]) -> None:
    trace, pairs = traces["plain"], traces["plain"].pairs
    right = FIGURES["entanglement"].draw(trace).axes[2]
    chosen = pairs.pull_rejected * pairs.grad_inner / (pairs.pull_chosen * pairs.grad_norm_chosen**2)
    rejected = pairs.pull_chosen * pairs.grad_inner / (pairs.pull_rejected * pairs.grad_norm_rejected**2)
    np.testing.assert_allclose(curve(right, CHOSEN), medians(trace, chosen))
    np.testing.assert_allclose(curve(right, REJECTED), medians(trace, rejected))


def test_the_margin_is_that_of_chosen_over_rejected(traces: dict[str, Trace]) -> None:
    plain, other = (FIGURES["margin"].draw(traces[run]).axes for run in ("plain", "exchanged"))
    trace, pairs = traces["plain"], traces["plain"].pairs
    margin = pairs.score_chosen - pairs.score_rejected
    panels = {ax.get_title(loc="left"): ax for ax in plain}
    mirror = {ax.get_title(loc="left"): ax for ax in other}
    np.testing.assert_allclose(curve(panels["Margin"], NEUTRAL), medians(trace, margin))
    np.testing.assert_allclose(curve(mirror["Margin"], NEUTRAL), -medians(trace, margin))
    accuracy = [curve(one["Accuracy"], NEUTRAL) for one in (panels, mirror)]
    np.testing.assert_allclose(accuracy[0], 1 - accuracy[1])
    np.testing.assert_allclose(accuracy[0], (margin > 0).groupby(step_bins(pairs).index).mean())


def test_chosen_is_up_and_rejected_across(traces: dict[str, Trace]) -> None:
    dots = {run: FIGURES["movement"].draw(trace).axes[0].collections[0].get_offsets() for run, trace in traces.items()}
    order = {run: points[np.lexsort(points.T)] for run, points in dots.items()}
    turned = order["exchanged"][:, ::-1]
    np.testing.assert_allclose(order["plain"], turned[np.lexsort(turned.T)])
    assert same([np.sort(dots["plain"][:, 0])], [np.sort(dots["chosen"][:, 0])])
    assert same([np.sort(dots["plain"][:, 1])], [np.sort(dots["rejected"][:, 1])])
    assert not same([np.sort(dots["plain"][:, 1])], [np.sort(dots["chosen"][:, 1])])


def test_cases_one_and_four_are_exchanged(traces: dict[str, Trace]) -> None:
    shares = {}
    for run in ("plain", "exchanged"):
        bins = step_bins(traces[run].pairs)
        shares[run] = [case_shares(bins, case_of(completed(traces[run]), basis)) for basis in ("realised", "plain")]
        axes = FIGURES["cases"].draw(traces[run]).axes[:2]
        for ax, wanted in zip(axes, shares[run], strict=True):
            for number, area in enumerate(ax.collections):
                assert to_hex(area.get_facecolor()[0]).upper() == CASE_COLOURS[number + 1].upper()
                at = area.get_paths()[0].vertices
                heights = [np.ptp(at[np.isclose(at[:, 0], x), 1]) for x in bins.centre[1:-1]]
                np.testing.assert_allclose(heights, wanted[number, 1:-1], atol=1e-9)
    for plain, other in zip(shares["plain"], shares["exchanged"], strict=True):
        np.testing.assert_allclose(plain, other[[3, 1, 2, 0]])
        assert plain[0].sum() != plain[3].sum()


def areas(figure: Figure) -> dict[tuple[str, str], np.ndarray]:
    """(side, part) → the height of each area at the middle of every bin but the outer ones, signed."""
    colours = {colour.upper(): name for name, colour in PUSH_COLOURS.items()}
    found: dict[tuple[str, str], np.ndarray] = {}
    for ax in figure.axes:
        side = ax.get_title(loc="left").casefold()
        for area in ax.collections:
            key = (side, colours[to_hex(area.get_facecolor()[0]).upper()])
            at = area.get_paths()[0].vertices
            heights = np.array([np.ptp(at[np.isclose(at[:, 0], x), 1]) for x in np.unique(at[:, 0])[1:-1]])
            found[key] = found.get(key, 0) + (heights if at[:, 1].max() > 0 else -heights)
    return found


def test_pushes_of_both_sides_are_exchanged_and_anchored(traces: dict[str, Trace]) -> None:
    figures = {run: FIGURES["pushes"].draw(trace) for run, trace in traces.items()}
    found = {run: areas(figure) for run, figure in figures.items()}
    assert {part for _, part in found["plain"]} == {"own_chosen", "own_rejected", "others", "past", "decay"}
    swapped = {"own_chosen": "own_rejected", "own_rejected": "own_chosen"}
    for (side, part), heights in found["plain"].items():
        np.testing.assert_allclose(heights, found["exchanged"][OTHER[side], swapped.get(part, part)], atol=1e-12)
        np.testing.assert_allclose(heights, found[OTHER[side]][side, part], atol=1e-12)
        assert not np.allclose(heights, found[side][side, part])
        rows = traces["plain"].pushes[traces["plain"].pushes.side == side]
        bins = step_bins(rows)
        wanted = rows.groupby(bins.index)[part].mean().to_numpy()
        np.testing.assert_allclose(heights, wanted[1:-1], atol=1e-9)
    for k, side in enumerate(SIDES):
        rows = traces["plain"].pushes[traces["plain"].pushes.side == side]
        total = rows.groupby(step_bins(rows).index).total.mean()
        np.testing.assert_allclose(curve(figures["plain"].axes[k], INK), total)
        raised = sum(rows.groupby(step_bins(rows).index)[part].mean().clip(lower=0) for part in PUSH_COLOURS)
        at = np.concatenate([area.get_paths()[0].vertices for area in figures["plain"].axes[k].collections])
        tops = [at[np.isclose(at[:, 0], x), 1].max() for x in step_bins(rows).centre]
        np.testing.assert_allclose(tops, raised, atol=1e-4)  # without rounding, which has no area


def test_the_first_figure_has_each_side_since_the_start_and_its_own_pushes(traces: dict[str, Trace]) -> None:
    figures = {run: FIGURES["story"].draw(trace).axes for run, trace in traces.items()}
    trace = traces["plain"]
    for side, panel in zip(SIDES, (1, 2), strict=True):
        pairs, colour = trace.pairs.sort_values("step"), SIDE_COLOURS[side]
        first = pairs.drop_duplicates("pair_id").set_index("pair_id")[f"ref_logp_{side}"]  # the reference is the start
        since = (trace.pairs[f"logp_{side}"] - trace.pairs.pair_id.map(first)) / trace.pairs[f"len_{side}"]
        np.testing.assert_allclose(curve(figures["plain"][0], colour), medians(trace, since))
        np.testing.assert_allclose(curve(figures["exchanged"][0], SIDE_COLOURS[OTHER[side]]), medians(trace, since))
        rows = trace.pushes[trace.pushes.side == side]
        total = rows.groupby(step_bins(rows).index).total.mean()
        np.testing.assert_allclose(curve(figures["plain"][panel], INK), total)
        np.testing.assert_allclose(curve(figures["exchanged"][3 - panel], INK), total)


@pytest.mark.parametrize("name", ["token_heat", "token_evolution"])
def test_chosen_tokens_go_down_and_rejected_ones_across(name: str, traces: dict[str, Trace]) -> None:
    maps = {}
    for run in ("plain", "exchanged"):
        axes = [ax for ax in FIGURES[name].draw(traces[run]).axes if ax.images]
        rows, columns = (
            [label.get_text() for label in axis] for axis in (axes[0].get_yticklabels(), axes[0].get_xticklabels())
        )
        maps[run] = [np.asarray(ax.images[0].get_array()) for ax in axes], rows, columns
    (plain, rows, columns), (other, *turned) = maps["plain"], maps["exchanged"]
    assert same(plain, [image.T for image in other]) and not same(plain, other)
    assert rows[0] == "Positive" and columns[0] == "Negative" and turned == [columns, rows]


def test_a_prediction_is_compared_with_its_own_side(traces: dict[str, Trace]) -> None:
    said, dots = {}, {}
    for run, trace in traces.items():
        axes = FIGURES["predicted"].draw(trace).axes
        texts = [text for ax in axes for text in ax.texts if "same sign" in text.get_text()]
        said[run] = {side: [t.get_text() for t in texts if t.get_text().startswith(side)] for side in SIDES}
        assert all(to_hex(t.get_color()).upper() == SIDE_COLOURS[t.get_text().partition(":")[0]].upper() for t in texts)
        dots[run] = drawn(FIGURES["predicted"].draw(trace))
    for side in SIDES:
        assert len(said["plain"][side]) == 3 and said["plain"][side] == said[OTHER[side]][side]
        assert said["plain"][side] != said[side][side]
        assert [t.partition(":")[2] for t in said["plain"][side]] == [
            t.partition(":")[2] for t in said["exchanged"][OTHER[side]]
        ]
        assert same([np.sort(x) for x in dots["plain"][side]], [np.sort(x) for x in dots["exchanged"][OTHER[side]]])


def test_the_figure_laws_fail_where_sides_are_mixed_up(traces: dict[str, Trace]) -> None:
    mixed = {run: drawn(FIGURES["log_probs"].draw(traces[run])) for run in ("plain", "exchanged", "rejected")}
    for found in mixed.values():
        found["chosen"], found["rejected"] = found["rejected"], found["chosen"]
    assert same([np.sort(x) for x in mixed["plain"]["chosen"]], [np.sort(x) for x in mixed["exchanged"]["rejected"]])
    assert not same(mixed["plain"]["chosen"], mixed["rejected"]["chosen"])  # what the exchange law lets pass


def test_every_figure_stands_under_a_law() -> None:
    assert set(FIGURES) == {*PLAIN, *SIDELESS, *OWN_LAW}
