"""The ranking by hidden similarity, and its agreement with the exact and the measured ranking, by scipy-free ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_frames import Options, simulate
from report_runs import manifest, write_tables

from dyn_probe.report.ranked import agreements, ranked_pairs, ranking_words
from dyn_probe.report.verdicts.hidden_similarity import similarity
from dyn_probe.trace.reader import Trace, load_trace

OPTIONS = Options(steps=30, pairs=20, batch=8)


def traced(folder: Path, ches: np.ndarray | None) -> Trace:
    """A run whose pairs have this hidden similarity."""
    tables = simulate(OPTIONS)
    if ches is not None:
        tables["pairs"] = tables["pairs"].assign(ches=ches, ches_normalised=ches / 10)
    return load_trace(write_tables(folder / "run", tables, manifest(OPTIONS)))


def excess(pairs: pd.DataFrame) -> pd.Series:
    """⟨g_w,g_l⟩ − (d_w/d_l)‖g_w‖²."""
    return pairs.grad_inner - pairs.pull_chosen / pairs.pull_rejected * pairs.grad_norm_chosen**2


def test_pairs_come_by_similarity_the_highest_first(tmp_path: Path) -> None:
    rows = simulate(OPTIONS)["pairs"]
    draw = np.random.default_rng(1).normal(size=len(rows))
    found = ranked_pairs(traced(tmp_path, draw), "ches", top=None)
    last = rows.assign(ches=draw).drop_duplicates("pair_id", keep="last").sort_values("ches", ascending=False)
    assert list(found["pair_id"]) == list(last["pair_id"]) and list(found["ches"]) == list(last["ches"])


@pytest.mark.parametrize("sign", [1, -1])
def test_agreement_is_one_where_it_orders_pairs_as_the_exact_condition_does(tmp_path: Path, sign: int) -> None:
    order = np.sign(excess(simulate(OPTIONS)["pairs"])) * sign * np.abs(excess(simulate(OPTIONS)["pairs"])) ** 0.5
    trace = traced(tmp_path, order.to_numpy())
    found = agreements(trace, "ches")
    assert found["excess"] == (pytest.approx(sign), 20) and "run" not in found
    last = trace.pairs.drop_duplicates("pair_id", keep="last")
    fall = ranked_pairs(trace, "fall", top=None).set_index("pair_id")["recorded_change_chosen"]
    ranks = last.set_index("pair_id")["ches"].rank().corr(-fall.rank())
    assert found["fall"][0] == pytest.approx(ranks, abs=1e-12)
    assert f"rank correlation with excess {'+' if sign > 0 else '−'}1.00 (20 pairs)" in ranking_words(trace, "ches")
    (said,) = similarity(trace)
    assert {n.key: n.value for n in said.numbers}["ches_against_excess"] == pytest.approx(sign)
    assert "the exact condition" in said.sentence and said.level == "note"


def test_nothing_is_said_where_hidden_states_were_not_seen(tmp_path: Path) -> None:
    trace = traced(tmp_path, None)
    assert similarity(trace) == [] and "rank correlation" not in ranking_words(trace)
