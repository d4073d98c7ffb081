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

    best = value(verdict, "best common factor on d_w/d_l")
    assert value(verdict, "rows in case 1 as recorded") == pytest.approx(ideal(1.0))
    assert value(verdict, "rows in case 1 with it") == pytest.approx(ideal(best))
    assert ideal(best) >= max(ideal(factor) for factor in np.geomspace(0.1, 10, 41)) - 0.03
    assert best > 1


def test_the_nll_weight_keeps_nine_of_ten_from_falling(falling: Trace) -> None:
    verdict, rows = only(nll_weight(falling)), last_rows(falling)
    weight = value(verdict, "λ on the summed log-probability")
    norms = rows.grad_norm_chosen, rows.grad_norm_rejected, rows.grad_inner
    up, down = predicted_delta(rows.pull_chosen + weight * 1.0001, rows.pull_rejected, *norms, 1.0)
    assert 0.89 <= (up >= 0).mean() <= 0.93
    assert value(verdict, "rows in which rejected would rise") == pytest.approx((down > 0).mean(), abs=0.011)
    slow = [max(0, r.pull_rejected * r.grad_inner / r.grad_norm_chosen**2 - r.pull_chosen) for r in rows.itertuples()]
    np.testing.assert_allclose(needed_weight(rows), slow)


def test_concentration_and_length(falling: Trace) -> None:
    pairs = falling.pairs
    fall = (-pairs.predicted_delta_chosen).clip(lower=0).groupby(pairs.pair_id).sum().sort_values(ascending=False)
    found = only(concentration(falling))
    assert value(found, "share of the fall in a tenth of the pairs") == pytest.approx(fall.iloc[:5].sum() / fall.sum())
    assert fall.index[0] in found.sentence
    last = pairs[pairs.step >= 108]
    margin = last.logp_chosen - last.ref_logp_chosen - last.logp_rejected + last.ref_logp_rejected
    ranks = (last.len_chosen - last.len_rejected).astype(float).rank().corr(margin.rank())
    assert value(only(length(falling)), "rank correlation of margin and n_w − n_l") == pytest.approx(ranks)


def test_layers_carry_parts_of_the_mean_cosine(falling: Trace) -> None:
    verdict, pairs = only(layers(falling)), falling.pairs[falling.pairs.step >= 108]
    size = pairs.set_index(["step", "pair_id"]).eval("grad_norm_chosen * grad_norm_rejected")
    head = falling.layers[(falling.layers.layer == "head") & (falling.layers.step >= 108)].set_index(
        ["step", "pair_id"]
    )
    part = (head.grad_inner / size).mean()
    assert value(verdict, "mean cosine") == pytest.approx(pairs.grad_cosine.mean())
    assert value(verdict, "share of head") == pytest.approx(part / pairs.grad_cosine.mean())
    assert value(verdict, "n") == len(pairs)


def test_without_entanglement_no_layer_is_blamed(tmp_path: Path) -> None:
    tables = simulate(DEFAULT)
    tables["layers"]["grad_inner"] *= np.where(tables["layers"].layer == "head", -1.0, 1.0)
    verdict = only(layers(load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT)))))
    assert "against it work head" in verdict.sentence
    parts = cosine_parts(tables["layers"][tables["layers"].step >= 108])
    positive = parts[parts > 0]
    assert value(verdict, "share of final_norm") == pytest.approx(parts["final_norm"] / positive.sum())
    tables["layers"]["grad_inner"] *= 0.01
    verdict = only(layers(load_trace(write_tables(tmp_path / "other", tables, manifest(DEFAULT)))))
    assert verdict.level == "ok" and "no entanglement to share out" in verdict.sentence


def test_measured_cases_and_the_origin_of_falls(falling: Trace) -> None:
    pairs = falling.pairs
    fell = pairs.realised_delta_chosen < 0
    found = only(measured(falling))
    assert value(found, "rows in which chosen fell") == pytest.approx(fell.mean())
    assert value(found, "rows in case 2") == pytest.approx((fell & (pairs.realised_delta_rejected <= 0)).mean())
    verdict = only(origin(falling))
    own = pairs.predicted_delta_chosen < 0
    assert value(verdict, "falls predicted from the pair alone") == pytest.approx(own[fell].mean())
    rest = fell & ~own
    assert value(verdict, "n of these") == rest.sum()
    by_others = (pairs.batch_delta_chosen[rest] < 0).mean()
    assert value(verdict, "of the other falls, by other pairs") == pytest.approx(by_others)


def test_a_length_bias_is_named(tmp_path: Path) -> None:
    tables = simulate(DEFAULT)
    pairs = tables["pairs"]
    pairs["logp_chosen"] = pairs.ref_logp_chosen + 0.3 * (pairs.len_chosen - pairs.len_rejected)
    verdict = only(length(load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT)))))
    assert verdict.level == "note" and "longer chosen response have the larger margin" in verdict.sentence


def test_the_prediction_is_compared_row_by_row(falling: Trace) -> None:
    verdict, pairs = only(alone(falling)), falling.pairs
    same = np.sign(pairs.predicted_delta_chosen) == np.sign(pairs.realised_delta_chosen)
    assert value(verdict, "same sign, chosen") == pytest.approx(same.mean())
    r = pairs.predicted_delta_rejected.corr(pairs.realised_delta_rejected)
    assert value(verdict, "r, rejected") == pytest.approx(r)
    assert "plain gradient step" in verdict.sentence
    assert f"commoner sign: {percent((pairs.realised_delta_chosen < 0).mean())}" in verdict.sentence
