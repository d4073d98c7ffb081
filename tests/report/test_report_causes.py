"""Verdicts on causes and cures: balance of the pulls, pairs, length, layers, measured falls, prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_checks import only, value
from report_frames import DEFAULT, simulate
from report_runs import manifest, new_trace, write_tables

from dyn_probe.entanglement import cases, predicted_delta
from dyn_probe.report.by_layer import cosine_parts
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.verdicts import percent
from dyn_probe.report.verdicts.prediction import alone
from dyn_probe.report.verdicts.realised import measured, origin
from dyn_probe.report.verdicts.remedies import common_factor, last_rows, needed_weight, nll_weight
from dyn_probe.report.verdicts.spread import concentration, layers, length
from dyn_probe.trace.reader import Trace, load_trace


@pytest.fixture(scope="module")
def falling(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A run in case 2 from start to end."""
    return new_trace(tmp_path_factory.mktemp("falling") / "run", DEFAULT)


def test_the_common_factor_does_what_it_says(falling: Trace) -> None:
    verdict, rows = only(common_factor(falling)), last_rows(falling)

    def ideal(factor: float) -> float:
        d_w, d_l = rows.pull_chosen * factor, rows.pull_rejected
        deltas = predicted_delta(d_w, d_l, rows.grad_norm_chosen, rows.grad_norm_rejected, rows.grad_inner, 1.0)
        return float((cases(*deltas) == 1).mean())

    best = value(verdict, "factor")
    assert value(verdict, "case_1") == pytest.approx(ideal(1.0))
    assert value(verdict, "case_1_then") == pytest.approx(ideal(best))
    assert ideal(best) >= max(ideal(factor) for factor in np.geomspace(0.1, 10, 41)) - 0.03
    assert best > 1


def test_the_nll_weight_keeps_nine_of_ten_from_falling(falling: Trace, tmp_path: Path) -> None:
    assert nll_weight(falling) == []  # the pushes of all pairs are known, and say it better
    tables = simulate(DEFAULT)
    del tables["pushes"]
    without = load_trace(write_tables(tmp_path / "without", tables, manifest(DEFAULT)))
    verdict, rows = only(nll_weight(without)), last_rows(without)
    weight = value(verdict, "weight")
    norms = rows.grad_norm_chosen, rows.grad_norm_rejected, rows.grad_inner
    up, down = predicted_delta(rows.pull_chosen + weight * 1.0001, rows.pull_rejected, *norms, 1.0)
    assert 0.89 <= (up >= 0).mean() <= 0.93
    assert value(verdict, "rises_rejected") == pytest.approx((down > 0).mean(), abs=0.011)
    slow = [max(0, r.pull_rejected * r.grad_inner / r.grad_norm_chosen**2 - r.pull_chosen) for r in rows.itertuples()]
    np.testing.assert_allclose(needed_weight(rows), slow)


def test_concentration_follows_the_measured_falls_and_else_the_predicted(falling: Trace, tmp_path: Path) -> None:
    pairs = falling.pairs.sort_values("step", kind="stable")
    first, last = (pairs.drop_duplicates("pair_id", keep=k).set_index("pair_id") for k in ("first", "last"))
    moved = (last.logp_chosen + last.realised_delta_chosen - first.logp_chosen[last.index]) / last.len_chosen
    fall = (-moved).clip(lower=0).sort_values(ascending=False)
    found = only(concentration(falling))
    assert value(found, "carried") == pytest.approx(fall.iloc[:5].sum() / fall.sum())
    assert value(found, "largest_fall_chosen") == pytest.approx(fall.iloc[0])
    assert fall.index[0] in found.sentence and "measured fall" in found.sentence

    tables = simulate(DEFAULT)
    once = tables["pairs"].drop_duplicates("pair_id")
    gone = [f"{name}_{side}" for name in ("ref_logp", "realised_delta", "update_delta") for side in SIDES]
    tables["pairs"] = once.drop(columns=gone)
    found = only(concentration(load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT)))))
    fall = (-once.predicted_delta_chosen).clip(lower=0).sort_values(ascending=False)
    assert value(found, "carried") == pytest.approx(fall.iloc[:5].sum() / fall.sum())
    assert "predicted fall" in found.sentence


def test_the_length_correlation_is_that_of_ranks(falling: Trace) -> None:
    pairs = falling.pairs
    last = pairs[pairs.step >= 108]
    margin = last.logp_chosen - last.ref_logp_chosen - last.logp_rejected + last.ref_logp_rejected
    ranks = (last.len_chosen - last.len_rejected).astype(float).rank().corr(margin.rank())
    assert value(only(length(falling)), "length_correlation") == pytest.approx(ranks)


def test_layers_carry_parts_of_the_mean_cosine(falling: Trace) -> None:
    verdict, pairs = only(layers(falling)), falling.pairs[falling.pairs.step >= 108]
    size = pairs.set_index(["step", "pair_id"]).eval("grad_norm_chosen * grad_norm_rejected")
    head = falling.layers[(falling.layers.layer == "head") & (falling.layers.step >= 108)].set_index(
        ["step", "pair_id"]
    )
    part = (head.grad_inner / size).mean()
    assert value(verdict, "cosine") == pytest.approx(pairs.grad_cosine.mean())
    assert value(verdict, "layer_head") == pytest.approx(part / pairs.grad_cosine.mean())
    assert value(verdict, "n") == len(pairs)


def test_without_entanglement_no_layer_is_blamed(tmp_path: Path) -> None:
    tables = simulate(DEFAULT)
    tables["layers"]["grad_inner"] *= np.where(tables["layers"].layer == "head", -1.0, 1.0)
    verdict = only(layers(load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT)))))
    assert "Negative contributions come from head." in verdict.sentence
    parts = cosine_parts(tables["layers"][tables["layers"].step >= 108])
    positive = parts[parts > 0]
    assert value(verdict, "layer_final_norm") == pytest.approx(parts["final_norm"] / positive.sum())
    tables["layers"]["grad_inner"] *= 0.01
    verdict = only(layers(load_trace(write_tables(tmp_path / "other", tables, manifest(DEFAULT)))))
    assert verdict.level == "ok" and "no entanglement to attribute to layers" in verdict.sentence


def test_measured_cases_and_the_origin_of_falls(falling: Trace) -> None:
    pairs = falling.pairs
    fell = pairs.realised_delta_chosen < 0
    found = only(measured(falling))
    assert value(found, "fell_chosen") == pytest.approx(fell.mean())
    assert value(found, "case_2") == pytest.approx((fell & (pairs.realised_delta_rejected <= 0)).mean())
    verdict = only(origin(falling))
    own = pairs.predicted_delta_chosen < 0
    assert value(verdict, "falls_own") == pytest.approx(own[fell].mean())
    rest = fell & ~own
    assert value(verdict, "n_others") == rest.sum()
    by_others = (pairs.batch_delta_chosen[rest] < 0).mean()
    assert value(verdict, "falls_other_pairs") == pytest.approx(by_others)


def test_a_length_bias_is_named(tmp_path: Path) -> None:
    tables = simulate(DEFAULT)
    pairs = tables["pairs"]
    pairs["logp_chosen"] = pairs.ref_logp_chosen + 0.3 * (pairs.len_chosen - pairs.len_rejected)
    verdict = only(length(load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT)))))
    assert verdict.level == "note" and "longer chosen response have the larger margin" in verdict.sentence


def test_the_prediction_is_compared_row_by_row(falling: Trace) -> None:
    verdict, pairs = only(alone(falling)), falling.pairs
    same = np.sign(pairs.predicted_delta_chosen) == np.sign(pairs.realised_delta_chosen)
    assert value(verdict, "same_sign_chosen") == pytest.approx(same.mean())
    r = pairs.predicted_delta_rejected.corr(pairs.realised_delta_rejected)
    assert value(verdict, "pearson_rejected") == pytest.approx(r)
    assert "plain gradient step" in verdict.sentence
    assert f"majority sign: {percent((pairs.realised_delta_chosen < 0).mean())}" in verdict.sentence
