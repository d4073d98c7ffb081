"""Reductions and derived numbers: every one against a plain loop over the rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from report_frames import DEFAULT, simulate

from dyn_probe.report import pair_columns
from dyn_probe.report.frames import _KEPT, bands, numbers, once, recorded, step_bins, tenths


@pytest.fixture(scope="module")
def pairs() -> pd.DataFrame:
    return simulate(DEFAULT)["pairs"]


def row_dicts(frame: pd.DataFrame) -> list[dict]:
    return frame.to_dict("records")


SLOW = {
    "margin": lambda r: (r["logp_chosen"] - r["ref_logp_chosen"]) - (r["logp_rejected"] - r["ref_logp_rejected"]),
    "log_ratio_margin": lambda r: (
        (r["logp_chosen"] - r["ref_logp_chosen"]) - (r["logp_rejected"] - r["ref_logp_rejected"])
    ),
    "logp_per_token_rejected": lambda r: r["logp_rejected"] / r["len_rejected"],
    "since_reference_chosen": lambda r: (r["logp_chosen"] - r["ref_logp_chosen"]) / r["len_chosen"],
    "norm_ratio": lambda r: r["grad_norm_chosen"] / r["grad_norm_rejected"],
    "needed_ratio": lambda r: r["grad_inner"] / r["grad_norm_chosen"] ** 2,
    "excess": lambda r: r["grad_inner"] - r["pull_chosen"] / r["pull_rejected"] * r["grad_norm_chosen"] ** 2,
    "condition_chosen": lambda r: (
        r["pull_rejected"] * r["grad_inner"] / (r["pull_chosen"] * r["grad_norm_chosen"] ** 2)
    ),
    "condition_rejected": lambda r: (
        r["pull_chosen"] * r["grad_inner"] / (r["pull_rejected"] * r["grad_norm_rejected"] ** 2)
    ),
    "pair_grad_norm": lambda r: (
        (
            r["pull_chosen"] ** 2 * r["grad_norm_chosen"] ** 2
            + r["pull_rejected"] ** 2 * r["grad_norm_rejected"] ** 2
            - 2 * r["pull_chosen"] * r["pull_rejected"] * r["grad_inner"]
        )
        ** 0.5
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_derived_numbers_equal_their_formula_row_by_row(name: str) -> None:
    pairs = simulate(replace(DEFAULT, gate=True, steps=20))["pairs"]  # gated: d_w and d_l differ
    np.testing.assert_allclose(
        pair_columns.DERIVED[name].compute(pairs), [SLOW[name](r) for r in row_dicts(pairs)], atol=1e-12
    )


def test_conditions_say_where_the_prediction_falls(pairs: pd.DataFrame) -> None:
    falls = numbers(pairs, "predicted_delta_chosen") < 0
    assert 0.5 < falls.mean() < 1
    np.testing.assert_array_equal(pair_columns.excess(pairs) > 0, falls)
    np.testing.assert_array_equal(pair_columns.condition_chosen(pairs) > 1, falls)


def test_without_reference_the_margin_is_the_plain_difference(pairs: pd.DataFrame) -> None:
    bare = pairs.assign(ref_logp_chosen=np.nan, ref_logp_rejected=np.nan)
    np.testing.assert_allclose(pair_columns.margin(bare), bare.logp_chosen - bare.logp_rejected)


def test_the_margin_is_that_of_the_recorded_scores(pairs: pd.DataFrame) -> None:
    """And the log-ratio margin stays what it is, whatever the objective compares."""
    scored = pairs.assign(score_chosen=-1.5, score_rejected=np.arange(len(pairs)) - 4.0)
    np.testing.assert_array_equal(pair_columns.margin(scored), 2.5 - np.arange(len(pairs)))
    np.testing.assert_array_equal(pair_columns.log_ratio_margin(scored), pair_columns.log_ratio_margin(pairs))


def test_without_reference_the_log_ratio_margin_is_the_change_since_the_first_record(pairs: pd.DataFrame) -> None:
    bare = pairs.assign(ref_logp_chosen=np.nan, ref_logp_rejected=np.nan)
    first: dict[str, float] = {}
    expected = []
    for row in row_dicts(bare):
        difference = row["logp_chosen"] - row["logp_rejected"]
        expected.append(difference - first[row["pair_id"]] if row["pair_id"] in first else np.nan)
        first.setdefault(row["pair_id"], difference)
    np.testing.assert_allclose(pair_columns.log_ratio_margin(bare), expected)


def test_zero_pulls_give_no_ratio_and_no_warning(pairs: pd.DataFrame) -> None:
    idle = pairs.head(5).assign(pull_chosen=0.0, pull_rejected=0.0)
    with np.errstate(all="raise"):
        for row in pair_columns.DERIVED.values():
            row.compute(idle)
    assert np.isnan(pair_columns.pull_ratio(idle)).all()


def test_tenths_are_the_first_and_last_tenth_of_distinct_steps(pairs: pd.DataFrame) -> None:
    parts = tenths(pairs)
    assert parts is not None
    assert (parts.first_steps, parts.last_steps) == ((0, 11), (108, 119))
    assert sorted(set(pairs.step[parts.first])) == list(range(12))
    assert tenths(pairs[pairs.step == 7]) is None


def test_bins_cover_every_row_once_in_order(pairs: pd.DataFrame) -> None:
    bins = step_bins(pairs)
    steps = numbers(pairs, "step")
    assert len(bins) == 40
    assert ((steps >= bins.low[bins.index]) & (steps <= bins.high[bins.index])).all()
    assert (bins.low[1:] > bins.high[:-1]).all()
    assert sum(len(part) for part in bins.slices(steps)) == len(pairs)


def test_bands_are_the_quantiles_of_each_bin_without_nulls(pairs: pd.DataFrame) -> None:
    holes = pairs.assign(grad_cosine=pairs.grad_cosine.where(pairs.index % 3 > 0))
    bins = step_bins(holes)
    found = bands(bins, numbers(holes, "grad_cosine"))
    for place in range(len(bins)):
        rows = holes[(holes.step >= bins.low[place]) & (holes.step <= bins.high[place])]
        np.testing.assert_allclose(found[place], rows.grad_cosine.dropna().quantile([0.05, 0.25, 0.5, 0.75, 0.95]))


def test_bin_means_leave_out_nulls_and_infinities() -> None:
    bins = step_bins(pd.DataFrame({"step": [0, 0, 0, 1, 1, 2]}))
    values = np.array([1.0, 4.0, np.nan, np.inf, 6.0, np.nan])
    np.testing.assert_array_equal(bins.means(values), [2.5, 6.0, np.nan])


def test_few_rows_still_get_a_bin_per_step() -> None:
    few = pd.DataFrame({"step": [3, 4, 9]})
    assert len(step_bins(few)) == 3
    assert len(step_bins(few.head(0))) == 0


def test_recorded_needs_one_value(pairs: pd.DataFrame) -> None:
    assert recorded(pairs, "gate") is False
    assert recorded(pairs, "grad_inner") is True
    assert recorded(pairs, "no_such_column") is False


def test_what_is_derived_from_a_trace_is_kept_for_that_trace_alone() -> None:
    class Run:
        pass

    asked: list[tuple[object, str]] = []

    @once
    def derived(run: Run, side: str = "chosen") -> object:
        asked.append((id(run), side))
        return object()

    one, other = Run(), Run()
    assert derived(one) is derived(one) and derived(one, "rejected") is not derived(one)
    assert derived(other) is not derived(one) and len(asked) == 3
    del one, other
    assert not _KEPT.keys() & {run for run, _ in asked}
