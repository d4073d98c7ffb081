"""Values of the losses: METHODS' test vector, exchange of the sides, and extremes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from objective_terms import all_terms

from dyn_probe.objectives import OBJECTIVES, Terms, kl_estimate, mismatched_rows, pair_loss, pulls


def one(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


VECTOR = Terms(a=one(-40), b=one(-60), n_w=one(20), n_l=one(25), r_w=one(-42), r_l=one(-55))


@pytest.mark.parametrize(
    ("name", "hyper", "shapings", "printed"),
    [
        ("dpo", {}, [], 0.403186),
        ("dpo", {}, ["adadpo"], 0.380507),
        ("dpo", {}, ["adadpo:space=policy"], 0.371608),
        ("dpo", {}, ["adadpo:stable=false"], 0.341154),
        ("dpo", {}, ["gate-seq"], 0.515828),
        ("dpo", {}, ["gate-seq:form=gradient"], 0.403186),
        ("cal_dpo", {"kappa": 1.0}, [], 9.000911),
        ("cal_dpo", {"kappa": 0.5}, [], 4.500911),
        ("simpo", {"beta": 2.0, "gamma": 1.0}, [], 0.798139),
        ("ipo", {"beta": 0.1}, [], 22.09),
        ("ipo", {"beta": 0.1, "average": False}, [], 4.00),
    ],
)
def test_the_printed_vector(name: str, hyper: dict[str, Any], shapings: list[str], printed: float) -> None:
    assert round(pair_loss(name, VECTOR, hyper, shapings)[0].item(), 6) == printed


def test_the_printed_gate() -> None:
    columns = pair_loss("dpo", VECTOR, shapings=["gate-seq"])[1]
    assert round(columns["gate"].item(), 6) == 0.386013
    assert columns["gate_statistic"].item() == pytest.approx(2.718281828459045**-2.4)


@pytest.mark.parametrize(
    ("name", "hyper", "value"),
    [
        # by hand from the formulas: h_w = 2, h_l = −5, ā = −2, b̄ = −2.4
        ("rrhf", {}, 40.0),
        ("rrhf", {"lambda": 0.0}, 0.0),
        ("slic_hf", {"delta": 21.0, "lambda": 0.5}, 21.0),
        ("sppo", {"beta": 0.1}, 9.0),
        ("sppo", {}, 498.0**2 + 495.0**2),
        ("sppo", {"beta": 0.25}, 9.0),
        ("sft", {}, 2.0),
        ("extended_sft", {}, 4.4),
    ],
)
def test_values_worked_by_hand(name: str, hyper: dict[str, float], value: float) -> None:
    assert pair_loss(name, VECTOR, hyper)[0].item() == pytest.approx(value, abs=1e-12)


def test_the_length_penalty_has_a_plus_sign() -> None:
    longer = replace(VECTOR, n_w=one(40))
    assert (
        pair_loss("rdpo", longer)[0] < pair_loss("rdpo", VECTOR)[0]
        and pulls("rdpo", longer)[0] < pulls("rdpo", VECTOR)[0]
    )


def test_dpo_shift_runs_from_lambda_to_one() -> None:
    scheduled = {"schedule": True, "lambda": 0.5}
    for progress, factor in ((0.0, 0.5), (0.5, 0.75), (1.0, 1.0)):
        now = pair_loss("dpo_shift", replace(VECTOR, progress=progress), scheduled)[0]
        assert torch.equal(now, pair_loss("dpo_shift", VECTOR, {"lambda": factor})[0])
    assert torch.equal(pair_loss("dpo_shift", VECTOR, {"lambda": 1})[0], pair_loss("dpo", VECTOR)[0])


def exchanged(t: Terms) -> Terms:
    return replace(t, a=t.b, b=t.a, n_w=t.n_l, n_l=t.n_w, r_w=t.r_l, r_l=t.r_w)


@settings(max_examples=50, deadline=None)
@given(terms=all_terms())
def test_exchanging_the_sides_of_dpo(terms: Terms) -> None:
    """ℓ(l, w) − ℓ(w, l) is the margin, and the two pulls add up to β."""
    there, back = pair_loss("dpo", terms)[0], pair_loss("dpo", exchanged(terms))[0]
    torch.testing.assert_close(back - there, 0.1 * (terms.h_w - terms.h_l))
    torch.testing.assert_close(
        pulls("dpo", terms)[0] + pulls("dpo", exchanged(terms))[0], torch.full_like(terms.a, 0.1)
    )


@settings(max_examples=50, deadline=None)
@given(terms=all_terms())
def test_label_smoothing_mixes_both_orders(terms: Terms) -> None:
    mixed = 0.7 * pair_loss("dpo", terms)[0] + 0.3 * pair_loss("dpo", exchanged(terms))[0]
    torch.testing.assert_close(pair_loss("dpo", terms, {"label_smoothing": 0.3})[0], mixed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("logps", [(-1e4, -1e4), (-1e4, 0.0), (0.0, -1e4), (0.0, 0.0), (-1e-9, -1e-9)])
def test_loss_and_pulls_are_finite_at_extremes(name: str, logps: tuple[float, float], dtype: torch.dtype) -> None:
    """Certain responses (log-probability 0) and next to impossible ones."""
    a, b, n, r = (torch.tensor([x], dtype=dtype) for x in (*logps, 7.0, -30.0))
    terms = Terms(a, b, n, n, r_w=r, r_l=r, kl=2.0)
    values = (pair_loss(name, terms)[0], *pulls(name, terms))
    assert all(bool(torch.isfinite(value).all()) for value in values)


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, 1e-12])
def test_orpo_keeps_its_digits_near_certainty(distance: float) -> None:
    """At p = e^{−x}: log-odds = −x − log(1 − e^{−x}) → −log x as x → 0."""
    from dyn_probe.objectives.formulas import log_odds

    expected = -torch.log(one(distance)) - distance / 2
    torch.testing.assert_close(log_odds(one(-distance)), expected, rtol=1e-7, atol=0)


def test_the_kl_estimate_is_clamped_and_detached() -> None:
    live = one(-1.0, -2.0).requires_grad_()
    assert kl_estimate(live, one(-3.0, -3.0)).item() == 1.5
    assert kl_estimate(live, one(0.0, 0.0)).item() == 0
    assert not kl_estimate(live, one(-3.0, -3.0)).requires_grad


def test_kto_reads_no_gradient_and_no_negative_value_from_kl() -> None:
    kl = one(0.7).requires_grad_()
    losses, _ = pair_loss("kto", replace(VECTOR, a=VECTOR.a.clone().requires_grad_(), kl=kl))
    losses.sum().backward()
    assert kl.grad is None
    at_zero = pair_loss("kto", replace(VECTOR, kl=0.0))[0]
    assert torch.equal(pair_loss("kto", replace(VECTOR, kl=-3.0))[0], at_zero)


def test_mismatched_rows_rotate_the_responses_within_each_side() -> None:
    assert mismatched_rows(3) == [2, 0, 1, 5, 3, 4]
    assert all(mismatched_rows(n)[i] % n != i % n for n in (2, 3, 8) for i in range(2 * n))
    with pytest.raises(ValueError, match="at least 2 pairs"):
        mismatched_rows(1)
