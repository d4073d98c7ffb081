"""Figures in particular: layers, long tails, long runs, odd names, probe responses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from figure_runs import drawn
from matplotlib.figure import Figure
from matplotlib.text import Text
from report_runs import write_tables
from report_tables import LAYERS

from dyn_probe.report.by_layer import cosine_parts, layer_codes, layer_cosines
from dyn_probe.report.curves import decades
from dyn_probe.report.figures import COMPARISONS, FIGURES
from dyn_probe.report.figures.clipping import MOST_POINTS, step_norms
from dyn_probe.report.figures.mass import since_start
from dyn_probe.report.frames import numbers, step_bins
from dyn_probe.report.style import short
from dyn_probe.trace.reader import Trace, load_trace


def as_written(figure: Figure, name: str) -> bool:
    """Whether the figure shows the name, and nowhere reads it as a formula."""
    odd = [text for text in drawn(figure).findobj(Text) if name in text.get_text()]
    assert not any(text.get_parse_math() for text in odd)
    return bool(odd)


def test_layers_stand_in_order_of_depth_with_their_cosine(traces: dict[str, Trace]) -> None:
    frame = traces["full"].layers.sample(frac=1, random_state=0).reset_index(drop=True)
    codes, names = layer_codes(frame)
    assert tuple(names) == LAYERS and [names[code] for code in codes] == list(frame.layer)
    bins = step_bins(frame)
    rows = frame[(frame.layer == "3") & (bins.index == 5)]
    slow = (rows.grad_inner / (rows.grad_norm_chosen * rows.grad_norm_rejected)).mean()
    assert layer_cosines(frame, bins)[LAYERS.index("3"), 5] == pytest.approx(slow)
    heat, bars = drawn(FIGURES["layers"].draw(traces["full"])).axes[:2]
    assert [label.get_text() for label in heat.get_yticklabels()] == list(LAYERS)
    widths = [patch.get_width() for patch in bars.patches]
    assert sum(widths) == pytest.approx(traces["full"].pairs.query("step >= 108").grad_cosine.mean())


def test_parts_of_the_cosine_add_up_to_the_mean_cosine(traces: dict[str, Trace]) -> None:
    trace = traces["full"]
    parts = cosine_parts(trace.layers.sample(frac=1, random_state=2))
    assert parts.sum() == pytest.approx(trace.pairs.grad_cosine.mean())
    assert tuple(parts.index) == LAYERS


def test_long_tails_get_a_scale_that_still_shows_the_middle(tmp_path: Path, traces: dict[str, Trace]) -> None:
    calm = drawn(FIGURES["entanglement"].draw(traces["full"])).axes[0]
    assert calm.get_yscale() == "linear"
    pairs = traces["full"].pairs.copy()
    pairs.loc[pairs.index % 10 == 0, "grad_inner"] *= 1e4
    wild = load_trace(write_tables(tmp_path / "wild", {"pairs": pairs}, {}))
    assert drawn(FIGURES["entanglement"].draw(wild)).axes[0].get_yscale() == "symlog"
    assert decades(2.0, 5e4) == [-1e4, -1e2, 0.0, 1e2, 1e4]


def test_the_heat_map_is_centred_on_zero(traces: dict[str, Trace]) -> None:
    mesh = FIGURES["layers"].draw(traces["full"]).axes[0].collections[0]
    assert mesh.get_clim() == (-1, 1) and mesh.get_cmap().name.startswith("RdBu")


def test_long_runs_keep_their_peaks_when_thinned(tmp_path: Path) -> None:
    count = 3 * MOST_POINTS
    norms = np.ones(count)
    norms[7777] = 50.0
    steps = pd.DataFrame({"step": np.arange(count), "rank": 0, "grad_norm": norms})
    trace = load_trace(write_tables(tmp_path / "run", {"steps": steps}, {}))
    step, before, _ = step_norms(trace)
    assert len(step) <= MOST_POINTS and before.max() == 50.0


def test_mass_counts_from_each_responses_own_start(traces: dict[str, Trace]) -> None:
    frame = traces["full"].mass.sample(frac=1, random_state=1).reset_index(drop=True)
    found = since_start(frame, numbers(frame, "logp_token"))
    start = frame[frame.step == 0].set_index(["prompt_id", "kind"]).logp_token
    slow = [row.logp_token - start[row.prompt_id, row.kind] for row in frame.itertuples()]
    np.testing.assert_allclose(found, slow)


def test_text_from_the_data_is_never_read_as_mathematics(tmp_path: Path, traces: dict[str, Trace]) -> None:
    run = traces["full"]
    odd = run.layers.assign(layer=run.layers.layer.replace({"3": "$\\frac{$"}))
    trace = load_trace(write_tables(tmp_path / "$x_{$", {"pairs": run.pairs, "layers": odd}, {}))
    assert as_written(FIGURES["layers"].draw(trace), "$\\frac{$")
    shown = {name for name, row in COMPARISONS.items() if as_written(row.draw({"$x_{$": trace, "a": run}), "$x_{$")}
    assert {"compare_log_probs", "compare_margin", "compare_entanglement", "compare_pairs"} <= shown


def test_long_names_are_cut_to_what_a_figure_has_room_for() -> None:
    assert short("run") == "run"
    assert short("x" * 99) == "x" * 27 + "…"
