"""The gate in the report: over the kinds of probe responses, by its own constants, and as a ranking of pairs."""

from __future__ import annotations

from math import exp
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_frames import Options
from report_runs import manifest, write_tables
from sides import trace_of, two_sided_tables

from dyn_probe.report.figures import FIGURES
from dyn_probe.report.figures.gate_kinds import gate_of, gate_options
from dyn_probe.report.frames import step_bins
from dyn_probe.report.ranked import ranked_pairs
from dyn_probe.report.style import REJECTED
from dyn_probe.trace.reader import Trace, load_trace


def gated(path: Path, *shaping: dict) -> Trace:
    objective = {"name": "dpo", "shaping": list(shaping)}
    return load_trace(write_tables(path, two_sided_tables(), manifest(Options()) | {"objective": objective}))


def test_the_gate_of_each_kind_has_the_runs_own_constants(tmp_path: Path) -> None:
    trace = gated(tmp_path / "run", {"name": "gate-seq", "options": {"alpha": 20.0, "tau": 0.2}})
    mass = trace.mass
    slow = pd.Series([1 / (1 + exp(-20 * (exp(x) - 0.2))) for x in mass.logp_token])
    figure = FIGURES["gate_kinds"].draw(trace)
    (line,) = [
        one for one in figure.axes[0].lines if str(one.get_color()).upper() == REJECTED and len(one.get_xdata()) > 2
    ]
    rejected = mass.kind == "rejected"
    wanted = slow[rejected].groupby(step_bins(mass).index[rejected]).median()
    np.testing.assert_allclose(line.get_ydata(), wanted)
    np.testing.assert_allclose(gate_of(mass.logp_token.to_numpy(), {"alpha": 20.0, "tau": 0.2}), slow)


@pytest.mark.parametrize(
    ("shaping", "tau"),
    [
        ((), 0.1),
        (({"name": "gate-seq", "options": {"tau": 0.3}},), 0.3),
        (({"name": "gate-q10", "options": {}},), None),
    ],
)
def test_a_gate_on_a_quantile_cannot_be_told_from_mean_probabilities(shaping, tau, tmp_path: Path) -> None:
    trace = gated(tmp_path / "run", *shaping)
    found = gate_options(trace.about)
    assert (None if found is None else found["tau"]) == tau
    texts = [text.get_text() for ax in FIGURES["gate_kinds"].draw(trace).axes for text in ax.texts]
    assert any("quantile" in text for text in texts) is (tau is None)


def test_pairs_are_ranked_by_their_gate(tmp_path: Path) -> None:
    trace = trace_of(tmp_path / "run", two_sided_tables())
    last = trace.pairs.sort_values("step", kind="stable").drop_duplicates("pair_id", keep="last")
    assert ranked_pairs(trace, "gate", top=4).gate.tolist() == sorted(last.gate)[:4]
