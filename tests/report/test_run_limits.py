"""`check`: each limit against the same number by pandas alone, on both sides; without numbers it never passes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from moved_runs import moved_run
from report_frames import Options, simulate
from report_runs import manifest, write_tables

from dyn_probe.errors import BadInput, TraceError
from dyn_probe.report.changes import run_change
from dyn_probe.report.monitor.limits import LIMITS, hold_to, measured_change
from dyn_probe.trace.reader import Trace, load_trace

OPTIONS = Options(steps=40, batch=8, pairs=24, seed=3)
SIDES = ("chosen", "rejected")


def traced(folder: Path, tables: dict[str, pd.DataFrame], status: str = "closed") -> Trace:
    """A trace of these tables."""
    return load_trace(write_tables(folder / "run", tables, manifest(OPTIONS), status))


def by_hand(pairs: pd.DataFrame, side: str, final: pd.DataFrame | None = None) -> float:
    """Median change per token of the pairs, pair by pair: from the reference, its start, to the table `final`, or from
    the first row to the last and its update."""
    changes = []
    for name, rows in pairs.groupby("pair_id"):
        first, last = rows.loc[rows.step.idxmin()], rows.loc[rows.step.idxmax()]
        start = first[f"logp_{side}" if final is None else f"ref_logp_{side}"]
        end = last[f"logp_{side}"] + last[f"realised_delta_{side}"]
        if final is not None:
            end = final.set_index("pair_id").loc[name, f"logp_{side}"] if name in set(final.pair_id) else np.nan
        if final is not None or len(rows) > 1:
            changes.append((end - start) / first[f"len_{side}"])
    return float(np.nanmedian(changes))


def final_rows(pairs: pd.DataFrame, count: int) -> pd.DataFrame:
    """Some pairs at the end of the run: chosen 7 nats down, rejected 5 up since their first row."""
    first = pairs.sort_values("step").drop_duplicates("pair_id").head(count)
    moved = first.assign(logp_chosen=first.logp_chosen - 7, logp_rejected=first.logp_rejected + 5)
    return moved[["pair_id", "rank", "logp_chosen", "logp_rejected", "len_chosen", "len_rejected"]]


@pytest.mark.parametrize("status", ["closed", "recording", "stopped"])
def test_changes_run_from_first_to_last_row_in_every_state_of_a_run(tmp_path: Path, status: str) -> None:
    tables = simulate(OPTIONS)
    trace = traced(tmp_path, tables, status)
    for side in SIDES:
        change, words = measured_change(trace, side)
        assert np.median(change) == pytest.approx(by_hand(tables["pairs"], side), rel=1e-12)
        assert "first to the last recorded row" in words


def test_the_end_of_the_run_counts_where_it_was_measured(tmp_path: Path) -> None:
    tables = simulate(OPTIONS)
    tables["final"] = final_rows(tables["pairs"], 9)
    fell, rose = hold_to(traced(tmp_path, tables), {"max_fall": 0, "max_rejected_rise": 0})
    assert fell.found.value == pytest.approx(-by_hand(tables["pairs"], "chosen", tables["final"]), rel=1e-12)
    assert rose.found.value == pytest.approx(by_hand(tables["pairs"], "rejected", tables["final"]), rel=1e-12)
    assert fell.found.n == rose.found.n == 9 and not fell.within and not rose.within
    assert "fell by" in fell.words and "rose by" in rose.words


def test_pairs_seen_once_are_compared_with_a_reference_that_is_the_start(tmp_path: Path) -> None:
    tables = simulate(Options(steps=3, batch=8, pairs=200, seed=5))
    once = tables["pairs"].drop_duplicates("pair_id", keep="first")
    later = once[once.step > 0]
    tables["pairs"] = once
    change, words = measured_change(traced(tmp_path, tables), "chosen")
    ratios = (once.logp_chosen - once.ref_logp_chosen) / once.len_chosen
    assert len(later) and np.median(change) == pytest.approx(np.median(ratios), rel=1e-12)
    assert "the reference" in words


def test_the_start_alone_is_no_change(tmp_path: Path) -> None:
    tables = simulate(Options(steps=1, batch=8, pairs=20, seed=5))
    with pytest.raises(TraceError, match="no change of chosen"):
        hold_to(traced(tmp_path, tables), {"max_fall": 0})


def test_one_update_is_no_change_since_the_start(tmp_path: Path) -> None:
    tables = simulate(Options(steps=3, batch=8, pairs=200, seed=5, reference=False))
    tables["pairs"] = tables["pairs"].drop_duplicates("pair_id", keep="first")
    assert tables["pairs"].realised_delta_chosen.notna().all()
    with pytest.raises(TraceError, match=r"no change of chosen has been measured.*--final-pairs"):
        hold_to(traced(tmp_path, tables), {"max_fall": 100})


@pytest.mark.parametrize(("realised", "update", "basis"), [(1, 1, "realised"), (0, 1, "update"), (0, 0, "plain")])
def test_both_down_is_the_share_of_rows_on_the_best_basis(
    tmp_path: Path, realised: int, update: int, basis: str
) -> None:
    options = Options(steps=20, realised=bool(realised), update=bool(update), turn=0.5)
    pairs = simulate(options)["pairs"]
    deltas = {"realised": "realised_delta", "update": "update_delta", "plain": "predicted_delta"}[basis]
    down = (pairs[f"{deltas}_chosen"] < 0) & (pairs[f"{deltas}_rejected"] < 0)
    (found,) = hold_to(traced(tmp_path, simulate(options)), {"max_both_down": 0.5})
    assert found.found.value == pytest.approx(down.mean(), abs=1e-12) and 0.05 < down.mean() < 0.95
    assert found.found.n == len(pairs)


@pytest.mark.parametrize("name", LIMITS)
def test_a_number_equal_to_its_limit_is_within_it_and_a_larger_one_is_not(tmp_path: Path, name: str) -> None:
    trace = traced(tmp_path, simulate(OPTIONS))
    (found,) = hold_to(trace, {name: 0.5})
    value = found.found.value
    for most, within in ((value, True), (np.nextafter(value, 1), True), (np.nextafter(value, -1), False)):
        (one,) = hold_to(trace, {name: float(most)})
        assert one.within is within


def test_what_was_not_recorded_is_an_error_and_never_a_pass(tmp_path: Path) -> None:
    tables = simulate(OPTIONS)
    kept = ["step", "pair_id", "rank", "loss"]
    trace = traced(tmp_path, {"pairs": tables["pairs"][kept], "steps": tables["steps"]})
    for name in LIMITS:
        with pytest.raises(TraceError, match=r"no (change|case)"):
            hold_to(trace, {name: 1.0})
    empty = load_trace(write_tables(tmp_path / "empty", {}, manifest(OPTIONS), "recording"))
    for name in LIMITS:
        with pytest.raises(TraceError, match=r"no (change|case)"):
            hold_to(empty, {name: 1.0})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "--max-fall 0.1 --max-rejected-rise 0"),
        ({"max_fall": None}, "at least one limit"),
        ({"max_fall": float("nan")}, "--max-fall must be a finite number"),
        ({"max_both_down": 50.0}, "0.5 for half of the rows"),
    ],
)
def test_limits_that_no_run_could_meet_or_miss_are_refused(
    tmp_path: Path, given: dict[str, float | None], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        hold_to(traced(tmp_path, simulate(OPTIONS)), given)


def test_check_and_headline_have_one_number(tmp_path: Path) -> None:
    """Moved from the reference, the start: later first rows, which have moved already, are not where it begins."""
    trace = moved_run(tmp_path / "run", -0.3, 0.2)
    told = run_change(trace)
    assert told is not None and "before training" in told.basis
    for side, moved in (("chosen", -0.3), ("rejected", 0.2)):
        change, words = measured_change(trace, side)
        assert np.median(change) == pytest.approx(np.median(told.side(side)), rel=1e-12)
        assert np.median(change) == pytest.approx(moved, rel=1e-9) and "before training" in words


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("name", LIMITS)
def test_a_run_that_diverged_is_beyond_every_limit(tmp_path: Path, name: str, value: float) -> None:
    tables = simulate(OPTIONS)
    pairs = tables["pairs"]
    last = pairs.drop_duplicates("pair_id", keep="last").index
    pairs.loc[last[:23], "logp_rejected"] = value
    (found,) = hold_to(traced(tmp_path, tables), {name: 1.0})
    assert not found.within and "23 of 24 pairs have a non-finite log-probability at their last row" in found.words
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["value"] is None
    tables["final"] = final_rows(pairs[pairs.step < 5], 1).assign(logp_chosen=value)
    pairs.loc[last, "logp_rejected"] = -9.0
    (found,) = hold_to(traced(tmp_path / "end", tables), {name: 1.0})
    assert not found.within and "1 of 24 pairs" in found.words


def test_a_run_that_was_never_finite_is_beyond_its_limits(tmp_path: Path) -> None:
    tables = simulate(OPTIONS)
    tables["pairs"] = tables["pairs"].assign(logp_chosen=np.nan, logp_rejected=np.nan)
    (found,) = hold_to(traced(tmp_path, tables), {"max_fall": 1.0})
    assert not found.within and "24 of 24 pairs" in found.words


def test_few_rows_with_a_case_say_nothing(tmp_path: Path) -> None:
    tables = simulate(Options(steps=20, realised=False, update=False))
    pairs = tables["pairs"]
    kept = pairs.groupby("step").cumcount() < 1
    lacking = [name for name in pairs if name.startswith("case") or "_delta_" in name]
    pairs.loc[~kept, lacking] = np.nan
    with pytest.raises(TraceError, match=rf"only {kept.sum()} of {len(pairs)} rows have a case"):
        hold_to(traced(tmp_path, tables), {"max_both_down": 1.0})
