"""What moved chosen and rejected: pushes in words, their balance, and the basis on which cases are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_checks import only, value
from report_frames import DEFAULT, Options, simulate
from report_runs import manifest, new_trace, with_manifest, write_tables

from dyn_probe.report.basis import basis_of, completed
from dyn_probe.report.verdicts import signed, what_moved
from dyn_probe.report.verdicts.cases import shares
from dyn_probe.report.verdicts.prediction import alone
from dyn_probe.report.verdicts.status import unmeasured
from dyn_probe.trace.reader import Trace, load_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return new_trace(tmp_path_factory.mktemp("runs") / "run", DEFAULT)


def changed(path: Path, table: str, **columns: object) -> Trace:
    tables = simulate(DEFAULT)
    tables[table] = tables[table].assign(**columns)
    return load_trace(write_tables(path, tables, manifest(DEFAULT)))


def test_the_headline_names_the_pushes_in_order_of_size(trace: Trace) -> None:
    found = only(what_moved.moved(trace))
    for side in ("chosen", "rejected"):
        rows = trace.pushes[trace.pushes.side == side]
        parts = {name: rows[name].mean() for name in ("own_chosen", "own_rejected", "others", "past", "decay")}
        for name, mean in parts.items():
            assert value(found, f"push_{name}_on_{side}") == pytest.approx(mean)
        assert value(found, f"push_total_on_{side}") == pytest.approx(rows.total.mean())
        sentence = found.sentence.partition(f"In a step on its own pair {side} ")[2].partition(". ")[0]
        places = [sentence.index(signed(parts[name])) for name in sorted(parts, key=lambda name: -abs(parts[name]))]
        assert places == sorted(places)
        assert sentence.startswith("falls" if rows.total.mean() < 0 else "rises") and "rounding" not in sentence


def test_the_balance_is_that_of_all_pushes_on_chosen_with_its_error(trace: Trace) -> None:
    found, rows = only(what_moved.outweighed(trace)), trace.pushes[trace.pushes.side == "chosen"]
    wanted = -rows.all_rejected.sum() / rows.all_chosen.sum() - 1
    assert value(found, "balance") == pytest.approx(wanted) and 0.05 < wanted < 0.15
    sums = rows.groupby("pair_id")[["all_chosen", "all_rejected"]].sum().to_numpy()
    ratio = -sums[:, 1].sum() / sums[:, 0].sum()
    spread = np.std(-sums[:, 1] - ratio * sums[:, 0]) / sums[:, 0].mean() / np.sqrt(len(sums))  # of a ratio of means
    assert value(found, "balance_error") == pytest.approx(spread, rel=0.2)
    assert f"outweigh chosen pushes by {100 * wanted:.1f} % (±" in found.sentence


def test_pushes_that_cancel_are_called_level_and_a_surplus_of_chosen_is_not_held(trace: Trace, tmp_path: Path) -> None:
    rows = trace.pushes
    level = changed(tmp_path / "level", "pushes", all_rejected=-rows.all_chosen.to_numpy()[::-1])
    ahead = changed(tmp_path / "ahead", "pushes", all_rejected=-0.5 * rows.all_chosen)
    down = changed(tmp_path / "down", "pushes", all_chosen=-rows.all_chosen)
    assert "balance on the chosen responses" in only(what_moved.outweighed(level)).sentence
    found = only(what_moved.outweighed(ahead))
    assert found.sentence.startswith("Chosen pushes of all pairs outweigh rejected pushes by 100.") and not found.knobs
    assert what_moved.outweighed(down) == []
    same = changed(tmp_path / "same", "pushes", all_rejected=0.3 * rows.all_chosen)
    assert "both raise the chosen responses" in only(what_moved.outweighed(same)).sentence


def test_between_its_own_steps_a_response_is_moved_by_the_pushes_of_others(trace: Trace, tmp_path: Path) -> None:
    found, rows = only(what_moved.between(trace)), trace.pushes[trace.pushes.side == "chosen"]
    others = {side: (rows[f"all_{side}"] - rows[f"own_{side}"]).sum() for side in ("chosen", "rejected")}
    wanted = -others["rejected"] / others["chosen"] - 1
    assert value(found, "balance_between") == pytest.approx(wanted) and wanted > 0
    weight = 2 * wanted * trace.pairs.pull_chosen.mean() * trace.pairs.len_chosen.mean()
    assert value(found, "level_weight") == pytest.approx(weight)
    assert f"--set nll={weight:.2g} " in found.sentence and f"loss_weights=[1.0, {weight:.2g}]" in found.sentence
    objective = {"name": "dpo", "shaping": [], "hyper": {"nll": 0.5, "nll_mean": "batch"}}
    assert value(only(what_moved.between(with_manifest(trace, objective=objective))), "level_weight") == pytest.approx(
        0.5 + weight
    )
    objective["hyper"]["nll_mean"] = "sum"
    assert "nll=" not in only(what_moved.between(with_manifest(trace, objective=objective))).sentence
    assert only(what_moved.between(trace)).level == "warning" and found.knobs
    every = simulate(DEFAULT)["pushes"]
    chosen = every.all_chosen - every.own_chosen
    ahead = changed(tmp_path / "ahead", "pushes", all_rejected=every.own_rejected - 0.5 * chosen)
    found = only(what_moved.between(ahead))
    assert found.sentence.startswith("Chosen pushes of other pairs outweigh their rejected pushes by 100.")
    assert found.level == "note" and not found.knobs and "nll" not in found.sentence
    level = changed(tmp_path / "level", "pushes", all_rejected=every.own_rejected - chosen.to_numpy()[::-1])
    assert what_moved.between(level) == []


@pytest.mark.parametrize(("share", "said"), [(0.0045, "by 0.45 % (±"), (0.0102, "by 1.0 % (±")])
def test_a_weight_is_named_where_pushes_do_not_nearly_cancel(share: float, said: str, tmp_path: Path) -> None:
    every = simulate(DEFAULT)["pushes"]
    chosen = every.all_chosen - every.own_chosen
    close = changed(tmp_path / "close", "pushes", all_rejected=every.own_rejected - (1 + share) * chosen)
    found = only(what_moved.between(close))
    assert said in found.sentence and found.level == "warning" and found.knobs
    named = share >= what_moved.CLOSE
    assert ("--set nll=" in found.sentence) == named and ("nearly cancel" in found.sentence) == (not named)
    assert ("level_weight" in {number.key for number in found.numbers}) == named


def test_a_scan_is_not_asked_for_a_trainings_numbers(tmp_path: Path) -> None:
    bare = new_trace(tmp_path / "run", Options(pushes=False, realised=False))
    assert only(what_moved.lacking(bare)).level == "warning" and unmeasured(bare)
    scanned = with_manifest(bare, scan={"checkpoints": [], "settings": {}})
    found = only(what_moved.lacking(scanned))
    assert found.level == "note" and "--" not in found.sentence and unmeasured(scanned) == []


def test_pushes_that_do_not_add_up_are_not_to_be_trusted(trace: Trace) -> None:
    assert what_moved.untrusted(trace) == []
    found = only(what_moved.untrusted(with_manifest(trace, pushes={"trusted": False, "step": 7, "law7_error": 0.25})))
    assert found.level == "warning" and "step 7" in found.sentence and value(found, "law7_error") == 0.25


@pytest.mark.parametrize(
    ("dtype", "error", "lost", "level"),
    [
        ("float32", 2e-4, None, "note"),
        ("float32", 0.02, None, "warning"),
        ("float32", 2e-4, 1e-5, "warning"),
        ("float64", 2e-4, None, "warning"),
    ],
)
def test_a_small_miss_of_float32_weights_may_be_their_storage(
    dtype: str, error: float, lost: float | None, level: str, tmp_path: Path
) -> None:
    """A trace that does not say what storing lost of the step (an older one, or parameters split over processes)."""
    pushes = {"trusted": False, "step": 0, "law7_error": error}
    run = changed(tmp_path / "run", "steps", law7_error=error, lost_share=lost)
    found = only(what_moved.untrusted(with_manifest(run, pushes=pushes, config={"dtype": dtype})))
    assert found.level == level and ("does not say whether" in found.sentence) == (level == "note")
    assert "step 0" in found.sentence and value(found, "law7_error") == error


@pytest.mark.parametrize(("lost", "said"), [(None, 1), (0.01, 1), (0.05, 0)])
def test_a_miss_that_storing_explains_is_no_warning(lost: float | None, said: int, tmp_path: Path) -> None:
    """The recorder trusted such a run; the report reads the same columns."""
    run = changed(tmp_path / "run", "steps", law7_error=0.04, lost_share=lost)
    assert len(what_moved.untrusted(with_manifest(run, config={"dtype": "float32"}))) == said


@pytest.mark.parametrize(
    ("dtype", "unmoved", "said"), [("bfloat16", 0.9, 1), ("bfloat16", 0.1, 0), ("float32", 0.9, 0)]
)
def test_weights_that_cannot_hold_the_rate_are_named(dtype: str, unmoved: float, said: int, tmp_path: Path) -> None:
    run = changed(tmp_path / "run", "steps", unmoved_share=unmoved)
    found = what_moved.unheld(with_manifest(run, config={"dtype": dtype}))
    assert len(found) == said
    if said:
        assert "cannot hold this learning rate" in found[0].sentence and value(found[0], "unmoved") == unmoved


def test_a_trace_without_pushes_says_what_it_lacks(trace: Trace, tmp_path: Path) -> None:
    assert what_moved.lacking(trace) == []
    bare = new_trace(tmp_path / "bare", Options(pushes=False))
    assert "--metric-every" in only(what_moved.lacking(bare)).sentence
    told = with_manifest(bare, pushes={"reason": "Lion's step is no metric times the gradient"})
    assert "Lion's step" in only(what_moved.lacking(told)).sentence
    assert what_moved.moved(bare) == what_moved.outweighed(bare) == []


@pytest.mark.parametrize(
    ("options", "basis"),
    [
        (DEFAULT, "realised"),
        (Options(realised=False), "update"),
        (Options(realised=False, update=False), "plain"),
    ],
)
def test_every_case_names_its_basis_and_a_plain_one_warns(options: Options, basis: str, tmp_path: Path) -> None:
    run = new_trace(tmp_path / "run", replace(options, regime="case1"))
    assert basis_of(completed(run)) == basis
    found, late = only(shares(run)), run.pairs[run.pairs.step >= 108]
    name = {"realised": "realised_delta", "update": "update_delta", "plain": "predicted_delta"}[basis]
    ideal = (late[f"{name}_chosen"] >= 0) & (late[f"{name}_rejected"] <= 0)
    assert value(found, "case_1") == pytest.approx(ideal.mean())
    assert ("not what the optimizer did" in found.sentence) is (basis == "plain")
    assert basis != "plain" or found.level == "warning"


def test_the_basis_is_what_all_runs_and_all_rows_of_measured_steps_have(trace: Trace) -> None:
    pairs = completed(trace)
    names = ["realised_delta_chosen", "realised_delta_rejected", "case_realised"]
    scheduled, partly, half = pairs.copy(), pairs.copy(), pairs.copy()
    scheduled.loc[pairs.step % 10 != 0, names] = np.nan
    partly.loc[pairs.index[pairs.step == 50][:1], names] = np.nan
    half.loc[pairs.step > 60, names] = np.nan
    assert [basis_of(run) for run in (pairs, scheduled, partly, half)] == ["realised", "realised", "update", "update"]
    assert basis_of(pairs, half) == "update"
    within = pairs.copy()
    within.loc[pairs.index[:5], "case_realised"] = np.nan  # measured, but within the noise floor
    assert basis_of(within) == "realised"


def test_a_change_within_the_noise_floor_is_no_case(tmp_path: Path) -> None:
    run = changed(tmp_path / "run", "steps", noise_floor=0.02)
    case, pairs = completed(run).case_realised, run.pairs
    small = (pairs.realised_delta_chosen.abs() <= 0.02) | (pairs.realised_delta_rejected.abs() <= 0.02)
    assert 0 < small.sum() < len(pairs) and (case.isna() == small).all()


def test_a_prediction_that_always_guessing_beats_is_never_a_good_one(tmp_path: Path) -> None:
    tables, draw = simulate(DEFAULT), np.random.default_rng(0)
    pairs = tables["pairs"]
    for side in ("chosen", "rejected"):
        real = -draw.uniform(0.5, 1.5, len(pairs))
        wrong = draw.uniform(0, 1, len(pairs)) < 0.1
        pairs[f"realised_delta_{side}"] = real
        pairs[f"predicted_delta_{side}"] = np.where(wrong, 0.01, real)
    found = only(alone(load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT)))))
    assert value(found, "same_sign_chosen") > 0.85 and value(found, "pearson_chosen") > 0.3 and found.level == "note"
