"""The figures of the mass table: what they draw, and what they say where nothing was measured."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from mass_tables import mass_table, trace
from matplotlib.collections import LineCollection, PathCollection

from dyn_probe.mass.probe_kinds import KINDS
from dyn_probe.mass.toy import cases
from dyn_probe.report.figures import COMPARISONS, FIGURES
from dyn_probe.report.figures.mass_deltas import compare_deltas, method_of
from dyn_probe.report.figures.mass_split import group_of
from dyn_probe.trace.manifest import typed
from dyn_probe.trace.schema import TABLES

OURS = {"mass_split", "mass_entropy", "squeezing_toy"}


def texts(figure):
    """All that a figure says."""
    return " ".join(text.get_text() for ax in figure.axes for text in [*ax.texts, ax.title, ax._left_title])


def lines(ax):
    """The curves of a panel (rules have one or two points)."""
    return [line.get_ydata() for line in ax.lines if len(line.get_ydata()) > 2]


def test_the_rows_are_in_the_tables_and_say_how_to_read_them():
    rows = [FIGURES[name] for name in OURS] + [COMPARISONS["compare_deltas"]]
    assert all(set(row.text) == {"Shows", "How to read", "Needs"} for row in rows)
    assert all(need.split(".")[1] in TABLES["mass"].names for row in rows for need in row.needs)


@pytest.mark.parametrize("name", sorted(OURS - {"squeezing_toy"}))
def test_without_probe_responses_the_figure_says_so(name):
    assert "needs probe responses" in texts(FIGURES[name].draw(trace()))


def test_the_parts_add_up_and_are_the_means():
    figure = FIGURES["mass_split"].draw(trace(mass_table()))
    for ax, place in zip(figure.axes, range(3), strict=True):
        tops = [area.get_paths()[0].vertices[:, 1].max() for area in ax.collections]
        assert tops[0] == pytest.approx(0.5 - 0.1 * place)  # the target at the first step
        assert tops[2] == pytest.approx(1)
        assert f"target {0.3 - 0.1 * place:.2f}" in texts(figure)
    assert "rival 0.40" in texts(figure)


def test_a_group_without_responses_says_so():
    figure = FIGURES["mass_split"].draw(trace(mass_table(kinds=("chosen", "rejected"))))
    assert texts(figure).count("no such probe response") == 1


@pytest.mark.parametrize("name", sorted(OURS))
def test_one_step_can_be_drawn(name):
    figure = FIGURES[name].draw(trace(mass_table(steps=(0,))))
    assert sum(len(ax.collections) + len(ax.lines) + len(ax.patches) for ax in figure.axes) > 3


def test_entropy_and_rank_are_drawn_per_group():
    entropy, rank, top = FIGURES["mass_entropy"].draw(trace(mass_table())).axes
    assert len(lines(entropy)) == 4
    assert all(line.tolist() == pytest.approx([3.0, 2.5, 2.0]) for line in lines(entropy))
    assert [line[-1] for line in lines(rank)] == pytest.approx([4, 24, 44, 64])
    assert rank.get_ylim()[0] == 0
    assert rank.get_ylim()[1] > 64
    assert [line[0] for line in lines(top)] == pytest.approx([0.5, 0.4, 0.3, 0.2])


def test_a_column_that_was_not_measured_is_named():
    figure = FIGURES["mass_entropy"].draw(trace(mass_table().assign(rank=np.nan)))
    assert texts(figure).count("not recorded: needs probe responses") == 1


def test_kinds_outside_the_table_are_their_own_group():
    assert group_of(pd.Series(["chosen", "irr_hum", "mine"])).tolist() == ["chosen", "others", "mine"]
    assert set(group_of(pd.Series(list(KINDS)))) == {"chosen", "rejected", "others", "near"}


def test_the_toy_draws_its_cases():
    figure = FIGURES["squeezing_toy"].draw(trace())
    assert len(figure.axes) == 5
    for ax, case in zip(figure.axes, cases(3), strict=False):
        assert [bar.get_height() for bar in ax.patches[:50]] == pytest.approx(case.before.tolist())
        assert ax.lines[0].get_ydata().tolist() == pytest.approx(case.after.tolist())


def test_methods_stand_side_by_side_with_one_dot_per_run():
    traces = {
        "a": trace(mass_table(fall=0.5)),
        "b": trace(mass_table(fall=1.5)),
        "c": trace(mass_table(fall=-0.1), shaping=["gate"]),
        "d": trace(),
    }
    figure = compare_deltas(traces)
    chosen = figure.axes[0]
    assert [label.get_text() for label in chosen.get_xticklabels()] == ["dpo", "dpo\ngate"]
    dots = [group for group in chosen.collections if isinstance(group, PathCollection)]
    heights = [[y for _, y in np.asarray(group.get_offsets())] for group in dots]
    assert heights == [pytest.approx([-10, -30]), pytest.approx([2])]
    bars = [group.get_segments()[0][0][1] for group in chosen.collections if isinstance(group, LineCollection)]
    assert bars == pytest.approx([-20, 2])


def test_runs_without_two_probes_are_named():
    assert "needs probe responses (--mass-every) at two steps: a, b" in texts(
        compare_deltas({"a": trace(), "b": trace(mass_table(steps=(3,)))})
    ).replace("\n", " ")


def test_a_method_is_named_by_objective_and_shaping():
    assert method_of(trace(method="ipo", shaping=["gate", "adadpo"])) == "ipo\ngate, adadpo"
    assert method_of(SimpleNamespace(about=typed({"config": {"objective": "dpo"}}))) == "dpo"
    assert method_of(SimpleNamespace(about=typed({}))) == "unnamed"
