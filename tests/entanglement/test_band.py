"""Band slack: the distance of log(d_w/d_l) from the edges of Condition 2, against closed forms and the conditions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyn_probe.entanglement import band_slack, conditions

positive = st.floats(1e-3, 1e3)


@pytest.mark.parametrize(
    ("pulls", "norms", "cosine", "slack"),
    [
        ((1.0, 1.0), (2.0, 2.0), 0.5, math.log(2)),
        ((1.0, 1.0), (1.0, 3.0), 0.5, math.log(2) - math.log(3)),
        ((3.0, 1.0), (1.0, 3.0), 0.5, math.log(2)),
        ((1.0, math.e), (1.0, 1.0), math.exp(-3), 2.0),
        ((math.e, 1.0), (1.0, 1.0), math.exp(-0.25), -0.75),
        ((1.0, 1.0), (1.0, 1.0), 1.0, 0.0),
    ],
    ids=["centre", "outside", "centre of unequal norms", "inside below", "outside above", "parallel"],
)
def test_closed_forms(pulls: tuple[float, float], norms: tuple[float, float], cosine: float, slack: float) -> None:
    found = band_slack(*pulls, *norms, cosine * norms[0] * norms[1])
    assert float(found) == pytest.approx(slack, abs=1e-12)


@given(positive, positive, positive, positive, st.floats(0.01, 0.99))
def test_inside_the_band_both_conditions_hold_and_outside_one_fails(
    d_w: float, d_l: float, n_w: float, n_l: float, cosine: float
) -> None:
    slack = float(band_slack(d_w, d_l, n_w, n_l, cosine * n_w * n_l))
    both = all(bool(holds) for holds in conditions(d_w, d_l, n_w, n_l, cosine * n_w * n_l))
    assert abs(slack) < 1e-9 or both is (slack > 0)


@given(positive, positive, positive, positive, st.floats(0.01, 0.99))
def test_chosen_and_rejected_swapped_it_is_the_same(
    d_w: float, d_l: float, n_w: float, n_l: float, cosine: float
) -> None:
    inner = cosine * n_w * n_l
    assert float(band_slack(d_w, d_l, n_w, n_l, inner)) == pytest.approx(float(band_slack(d_l, d_w, n_l, n_w, inner)))


def test_moving_the_ratio_by_the_slack_reaches_the_nearer_edge() -> None:
    d_w, d_l, n_w, n_l, inner = 1.3, 0.9, 2.0, 1.1, 0.8
    slack = float(band_slack(d_w, d_l, n_w, n_l, inner))
    assert slack > 0
    moved = [float(band_slack(d_w * math.exp(sign * slack), d_l, n_w, n_l, inner)) for sign in (-1, 1)]
    assert min(abs(value) for value in moved) < 1e-12


def test_where_there_is_no_band_there_is_no_number() -> None:
    nothing = band_slack(
        [0.0, 1.0, -1.0, 1.0, 1.0, np.nan], [1, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1], 1.0, [1, 1, 1, 1, -1, 1]
    )
    assert np.isnan(nothing).all() and nothing.shape == (6,)
    assert np.isnan(band_slack(1.0, 1.0, 1.0, 1.0, 0.0))


def test_a_cosine_above_one_by_rounding_has_an_empty_band() -> None:
    assert float(band_slack(1.0, 1.0, 1.0, 1.0, 1.0 + 1e-12)) == 0.0
    assert float(band_slack(2.0, 1.0, 1.0, 1.0, 1.0 + 1e-12)) == pytest.approx(-math.log(2))
