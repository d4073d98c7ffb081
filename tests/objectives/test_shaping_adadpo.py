"""AdaDPO: the pulls on the balanced quantities are equal below the ceiling, and ρ never exceeds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_terms import all_terms, hypers

from dyn_probe.objectives import Terms, composes_with, pair_loss, pulls

CASES = [
    (name, space, stable)
    for name in composes_with("adadpo")
    for space in ("ratio", "policy")
    for stable in ("true", "false")
    if name != "orpo" and (name not in ("simpo", "cpo") or space == "policy")
] + [("orpo", "auto", "true")]


def balanced_quantities(t: Terms, name: str, space: str, stable: str) -> tuple[torch.Tensor, torch.Tensor]:
    """p_w, p_l: what the option says should be balanced, written out once more."""
    if name == "orpo":
        p_w, p_l = torch.exp(t.a / t.n_w), torch.exp(t.b / t.n_l)
        return p_w / (1 - p_w), p_l / (1 - p_l)
    assert t.r_w is not None and t.r_l is not None
    w, l = (t.a - t.r_w, t.b - t.r_l) if space == "ratio" else (t.a, t.b)  # noqa: E741
    return (torch.exp(w / t.n_w), torch.exp(l / t.n_l)) if stable == "true" else (torch.exp(w), torch.exp(l))


def entering(name: str, t: Terms, averaged: bool) -> tuple[Any, Any]:
    """∂a/∂x, ∂b/∂y for the quantities x, y whose difference the pair term takes (means, log-odds or sums)."""
    if name == "orpo":
        return t.n_w * (1 - torch.exp(t.a / t.n_w)), t.n_l * (1 - torch.exp(t.b / t.n_l))
    return (t.n_w, t.n_l) if averaged else (1, 1)


@pytest.mark.parametrize(("name", "space", "stable"), CASES)
@settings(max_examples=30, deadline=None)
@given(data=st.data(), terms=all_terms())
def test_pulls_balance_below_the_ceiling(name: str, space: str, stable: str, data: st.DataObject, terms: Terms) -> None:
    """d_w/p_w = d_l/p_l for the pair term, with pulls taken on what enters it."""
    hyper = data.draw(hypers(name)) | ({"lambda": 0.0} if name == "cpo" else {})
    shaping = [f"adadpo:space={space},stable={stable},ceiling=1e30"]
    d_w, d_l = pulls(name, terms, hyper, shaping)
    if name == "orpo":  # beside its pair term stands the likelihood term −ā
        hyper["lambda"] = 5.0
        d_w, d_l = pulls(name, terms, hyper, shaping)
        d_w = d_w - 1 / terms.n_w
    p_w, p_l = balanced_quantities(terms, name, space, stable)
    per_w, per_l = entering(name, terms, averaged=hyper.get("average", name == "simpo"))
    torch.testing.assert_close(d_w * per_w / p_w, d_l * per_l / p_l, rtol=1e-7, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(terms=all_terms(), ceiling=st.floats(0.1, 5))
def test_rho_never_exceeds_the_ceiling_and_is_exact_below(terms: Terms, ceiling: float) -> None:
    rho = pair_loss("dpo", terms, shapings=[f"adadpo:ceiling={ceiling}"])[1]["rho"]
    free = torch.exp(terms.h_w / terms.n_w - terms.h_l / terms.n_l)
    assert (rho <= ceiling).all()
    torch.testing.assert_close(rho, torch.minimum(free, torch.full_like(free, ceiling)))


@settings(max_examples=30, deadline=None)
@given(terms=all_terms())
def test_only_the_chosen_coefficient_changes(terms: Terms) -> None:
    """ℓ = −log σ(βρh_w − βh_l), so d_w = ρ·d_l, and the log-ratios inside stay sums."""
    losses, columns = pair_loss("dpo", terms, {"beta": 0.3}, ["adadpo"])
    d_w, d_l = pulls("dpo", terms, {"beta": 0.3}, ["adadpo"])
    torch.testing.assert_close(d_w, columns["rho"] * d_l)
    expected = torch.log1p(torch.exp(-0.3 * (columns["rho"] * terms.h_w - terms.h_l)))
    torch.testing.assert_close(losses, expected)


def test_no_gradient_flows_through_rho() -> None:
    a, b = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (-2.0, -3.0))
    n = torch.tensor([2])
    terms = Terms(a, b, n, n, r_w=a.detach() - 0.1, r_l=b.detach() + 0.2)
    losses, columns = pair_loss("dpo", terms, shapings=["adadpo"])
    grads = torch.autograd.grad(losses.sum(), (a, b))
    torch.testing.assert_close(-grads[0], columns["rho"] * grads[1])
    assert not columns["rho"].requires_grad


@pytest.mark.parametrize("far", [(-1e4, 0.0), (0.0, -1e4)])
def test_rho_is_finite_at_extremes(far: tuple[float, float]) -> None:
    a, b, n = (torch.tensor([x]) for x in (*far, 3.0))
    terms = Terms(a, b, n, n, r_w=n * 0, r_l=n * 0)
    for option in ("", ":space=policy", ":stable=false"):
        losses, columns = pair_loss("dpo", terms, shapings=["adadpo" + option])
        assert torch.isfinite(losses).all() and 0 <= columns["rho"].item() <= 2


def test_auto_means_ratio_with_a_reference_and_policy_without() -> None:
    a, b, n = (torch.tensor([x], dtype=torch.float64) for x in (-2.0, -2.5, 4.0))
    terms = Terms(a, b, n, n, r_w=a + 0.3, r_l=b - 0.1)

    def rho(name: str, option: str) -> float:
        given = terms if name == "dpo" else replace(terms, r_w=None, r_l=None)
        return pair_loss(name, given, shapings=["adadpo" + option])[1]["rho"].item()

    assert rho("dpo", "") == rho("dpo", ":space=ratio") != rho("dpo", ":space=policy")
    assert rho("simpo", "") == rho("simpo", ":space=policy") == rho("dpo", ":space=policy")


@pytest.mark.parametrize(
    ("name", "shaping", "says"),
    [
        ("simpo", "adadpo:space=ratio", "space=policy"),
        ("orpo", "adadpo:stable=false", "log-odds"),
        ("dpo_shift", "adadpo", "it does with: dpo, rdpo, simpo, ipo, cpo, orpo"),
    ],
)
def test_what_cannot_be_balanced_is_refused(name: str, shaping: str, says: str) -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match=says):
        pair_loss(name, Terms(-one, -one, one, one, r_w=-one, r_l=-one), shapings=[shaping])
