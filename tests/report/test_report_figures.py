"""Figures: every row of the table on every kind of run; what is drawn is what the frames hold."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from figure_runs import RUNS, drawn
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from dyn_probe.report.curves import spread
from dyn_probe.report.figures import COMPARISONS, FIGURES, figures_for
from dyn_probe.report.figures.case_shares import case_shares
from dyn_probe.report.frames import numbers, step_bins
from dyn_probe.report.style import CHOSEN, REJECTED
from dyn_probe.trace.reader import Trace


def words(figure: Figure) -> str:
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    return "\n".join(texts).replace("\n", " ")


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("run", [*RUNS, "empty"])
@pytest.mark.filterwarnings("error")
def test_every_figure_draws_every_run_and_changes_nothing(name: str, run: str, traces: dict[str, Trace]) -> None:
    trace = traces[run]
    tables = {table: getattr(trace, table).copy() for table in ("pairs", "steps", "layers", "mass")}
    settings = dict(matplotlib.rcParams)
    figure = drawn(FIGURES[name].draw(trace))
    assert isinstance(figure, Figure) and figure.axes
    assert dict(matplotlib.rcParams) == settings
    for table, before in tables.items():
        pd.testing.assert_frame_equal(getattr(trace, table), before)


@pytest.mark.parametrize("name", [*FIGURES, *COMPARISONS])
def test_every_figure_says_what_it_shows_how_to_read_it_and_what_it_needs(name: str) -> None:
    row = {**FIGURES, **COMPARISONS}[name]
    assert list(row.text) == ["Shows", "How to read", "Needs"]
    assert all(text.endswith(".") for text in row.text.values())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("predicted", "needs the pairs evaluated again after the update"),
        ("cases", "needs the pairs evaluated again after the update"),
        ("log_probs", "needs a reference policy"),
        ("shaping", "no gradient shaping"),
        ("mass", "needs probe responses"),
    ],
)
def test_what_is_null_is_named_in_the_figure(name: str, said: str, traces: dict[str, Trace]) -> None:
    assert said in words(FIGURES[name].draw(traces["bare"]))
    assert said not in words(FIGURES[name].draw(traces["full"]))


def test_an_empty_trace_says_so_in_every_figure(traces: dict[str, Trace]) -> None:
    for name in ("grad_norms", "entanglement", "pulls", "layers", "clipping", "cases", "predicted"):
        assert "no rows" in (said := words(FIGURES[name].draw(traces["empty"]))) or "not recorded" in said, name


def test_optional_figures_are_left_out_where_there_is_nothing(traces: dict[str, Trace]) -> None:
    left_out = set(FIGURES) - set(figures_for(traces["bare"]))
    assert {"shaping", "mass"} <= left_out and all(FIGURES[name].optional for name in left_out)
    assert {"shaping", "mass", "predicted", "layers"} <= set(figures_for(traces["full"]))


def test_the_chosen_line_is_the_median_of_the_bins(traces: dict[str, Trace]) -> None:
    trace = traces["full"]
    right = drawn(FIGURES["log_probs"].draw(trace)).axes[2]
    lines = {to_hex(line.get_color(), keep_alpha=False).upper(): line for line in right.lines}
    pairs, bins = trace.pairs, step_bins(trace.pairs)
    for colour, side in ((CHOSEN, "chosen"), (REJECTED, "rejected")):
        value = (pairs[f"logp_{side}"] - pairs[f"ref_logp_{side}"]) / pairs[f"len_{side}"].astype(float)
        medians = value.groupby(bins.index).median()
        np.testing.assert_allclose(lines[colour.upper()].get_ydata(), medians)


def test_case_shares_add_up_and_count_rows(traces: dict[str, Trace]) -> None:
    pairs = traces["full"].pairs
    bins = step_bins(pairs)
    shares = case_shares(bins, numbers(pairs, "case_plain"))
    np.testing.assert_allclose(shares.sum(0), 1)
    first = pairs[pairs.step <= bins.high[0]]
    assert shares[1, 0] == pytest.approx((first.case_plain == 2).mean())


def test_agreement_is_written_into_the_scatter(traces: dict[str, Trace]) -> None:
    pairs = traces["full"].pairs
    same = (np.sign(pairs.batch_delta_chosen) == np.sign(pairs.realised_delta_chosen)).mean()
    said = words(FIGURES["predicted"].draw(traces["full"]))
    assert f"chosen: same sign {same:.0%}" in said and f"n = {len(pairs)}" in said


def test_labels_are_moved_apart_but_keep_their_order() -> None:
    placed = spread([0.5, 0.51, 0.1], 0.1)
    assert placed[1] - placed[0] == pytest.approx(0.1) and placed[2] < placed[0]
    assert np.mean(placed) == pytest.approx(np.mean([0.5, 0.51, 0.1]))
