"""How far pairs moved, and how well one series tells another: against plain loops over the rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_frames import DEFAULT, simulate

from dyn_probe.report import pair_columns
from dyn_probe.report.agreement import agreement, spearman
from dyn_probe.report.changes import LEAST_PAIRS, change, starts_at_reference


@pytest.fixture(scope="module")
def pairs() -> pd.DataFrame:
    return simulate(DEFAULT)["pairs"]


def row_dicts(frame: pd.DataFrame) -> list[dict]:
    return frame.to_dict("records")


def test_change_since_first_is_null_on_the_first_row_and_counts_from_it(pairs: pd.DataFrame) -> None:
    shuffled = pairs.sample(frac=1, random_state=3)
    found = pair_columns.since_first(shuffled, "chosen")
    first: dict[str, dict] = {}
    for row in row_dicts(shuffled.sort_values("step")):
        first.setdefault(row["pair_id"], row)
    for row, value in zip(row_dicts(shuffled), found, strict=True):
        start = first[row["pair_id"]]
        if row["step"] == start["step"]:
            assert np.isnan(value)
        else:
            assert value == pytest.approx((row["logp_chosen"] - start["logp_chosen"]) / row["len_chosen"])


def test_a_null_pair_id_has_no_other_row(pairs: pd.DataFrame) -> None:
    some = pairs.head(6).assign(pair_id=None)
    assert np.isnan(pair_columns.since_first(some, "chosen")).all()


def test_change_takes_the_same_pairs_of_both_tenths(pairs: pd.DataFrame) -> None:
    moved = change(pairs)
    assert moved is not None and moved.paired
    means: dict[str, dict[str, list[float]]] = {}
    for row in row_dicts(pairs):
        when = "first" if row["step"] <= 11 else "last" if row["step"] >= 108 else ""
        if when:
            means.setdefault(row["pair_id"], {}).setdefault(when, []).append(row["logp_chosen"] / row["len_chosen"])
    slow = [np.mean(m["last"]) - np.mean(m["first"]) for m in means.values() if len(m) == 2]
    np.testing.assert_allclose(sorted(moved.chosen), sorted(slow))
    assert moved.n == len(slow)


def test_change_falls_back_to_the_reference_only_if_training_began_there(pairs: pd.DataFrame) -> None:
    once = pairs.drop_duplicates("pair_id").assign(step=range(pairs.pair_id.nunique()))
    start = once.step < 5
    for side in pair_columns.SIDES:
        once.loc[start, f"logp_{side}"] = once.loc[start, f"ref_logp_{side}"]
    moved = change(once)
    assert moved is not None and "relative to the reference" in moved.basis
    away = once.assign(logp_chosen=once.logp_chosen - 30)
    assert not starts_at_reference(away)
    other = change(away)
    assert other is not None and not other.paired and "different pairs" in other.basis


def test_a_handful_of_same_pairs_yields_to_the_reference(pairs: pd.DataFrame) -> None:
    start = set(pairs[pairs.step == 0].pair_id)
    seen = pairs.groupby("step").pair_id.agg(lambda names: len(start & set(names)))
    last = seen[(seen > 0) & (seen < LEAST_PAIRS)].index[-1]
    few = pairs[pairs.step.isin([0, last])]
    moved = change(few)
    assert moved is not None and "relative to the reference" in moved.basis


def test_agreement_counts_signs_and_correlates_ranks() -> None:
    x = np.array([1.0, -2.0, 3.0, -4.0, np.nan, 0.0])
    y = np.array([10.0, -1.0, -5.0, -2.0, 1.0, 0.0])
    found = agreement(x, y)
    assert (found.n, found.same_sign) == (5, 0.8)
    assert found.scale == pytest.approx(2.0 / 2.0)
    assert spearman(np.arange(9.0), np.exp(np.arange(9.0))) == pytest.approx(1)
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))
