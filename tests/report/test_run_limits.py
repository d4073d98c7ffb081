"""`check`: each limit against the same number by pandas alone, on both sides; without numbers it never passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_frames import Options, simulate
from report_runs import manifest, write_tables

from dyn_probe.errors import BadInput, TraceError
from dyn_probe.report.monitor.limits import LIMITS, hold_to, measured_change
from dyn_probe.trace.reader import Trace, load_trace

OPTIONS = Options(steps=40, batch=8, pairs=24, seed=3)
SIDES = ("chosen", "rejected")


def traced(folder: Path, tables: dict[str, pd.DataFrame], status: str = "closed") -> Trace:
    """A trace of these tables."""
    return load_trace(write_tables(folder / "run", tables, manifest(OPTIONS), status))


def by_hand(pairs: pd.DataFrame, side: str, final: pd.DataFrame | None = None) -> float:
    """Median change per token of the pairs, pair by pair: to the table `final`, or to the last row and its update."""
    changes = []
    for name, rows in pairs.groupby("pair_id"):
        first, last = rows.loc[rows.step.idxmin()], rows.loc[rows.step.idxmax()]
        end = last[f"logp_{side}"] + last[f"realised_delta_{side}"]
        if final is not None:
            end = final.set_index("pair_id").loc[name, f"logp_{side}"] if name in set(final.pair_id) else np.nan
        if final is not None or len(rows) > 1:
            changes.append((end - first[f"logp_{side}"]) / first[f"len_{side}"])
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
