"""Law: the pulls are the derivatives of the loss; here against closed forms in numpy, for every objective."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import CLOSED, SHAPED, Closed, numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_terms import all_terms, hypers

from dyn_probe.objectives import OBJECTIVES, SHAPINGS, Measured, Terms, pair_loss, parse_shaping, pulls


def assert_pulls(name: str, terms: Terms, hyper: dict[str, Any], closed: Closed) -> None:
    """The pulls of ``name`` are those of the closed form, to float64 rounding."""
    for ours, theirs in zip(pulls(name, terms, hyper), closed(numbers(terms), hyper), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-12)


def test_every_row_has_a_closed_form() -> None:
    assert set(CLOSED) == set(OBJECTIVES)
    assert set(SHAPED) == set(SHAPINGS)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), terms=all_terms())
def test_pulls_equal_the_closed_form(name: str, data: st.DataObject, terms: Terms) -> None:
    assert_pulls(name, terms, data.draw(hypers(name)), CLOSED[name])


@pytest.mark.parametrize("name", [row.name for row in OBJECTIVES.values() if not row.vanishing(row.defaults)])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), terms=all_terms(), reach=st.floats(0.1, 17))
def test_pulls_that_are_declared_never_to_vanish_do_not(
    name: str, data: st.DataObject, terms: Terms, reach: float
) -> None:
    """In float32, over log-ratios of ±17/β: no pull changes its sign, and no square of one underflows."""
    hyper = data.draw(hypers(name))
    if OBJECTIVES[name].vanishing(hyper):
        return
    assert terms.r_w is not None and terms.r_l is not None
    ratios = (torch.rand(2, len(terms.a)) * 2 - 1) * reach / hyper["beta"]
    a, b = (terms.r_w + ratios[0]).float(), (terms.r_l + ratios[1]).float()
    for shapings in ([], ["gate-seq"], ["gate-q10"]):
        d_w, d_l = pulls(name, replace(terms, a=a, b=b, r_w=terms.r_w.float(), r_l=terms.r_l.float()), hyper, shapings)
        assert bool((d_w > 1e-18).all()) and bool((d_l > 1e-18).all())


def test_pulls_may_vanish_unless_that_was_denied() -> None:
    """A new row is asked; of ours these deny it, and shapings that can close do not."""
    denied = {row.name for row in OBJECTIVES.values() if not row.vanishing(row.defaults)}
    assert denied == {"dpo", "dpop", "dpo_shift"}
    assert OBJECTIVES["dpo"].vanishing({**OBJECTIVES["dpo"].defaults, "label_smoothing": 0.1})
    gate, steep = (parse_shaping(f"gate-seq:alpha={alpha}") for alpha in (50, 1000))
    assert not gate.shaping.vanishing(gate.options) and steep.shaping.vanishing(steep.options)


def shaped_pulls(shaping: str, terms: Terms, beta: float, norms: tuple[Any, Any]) -> tuple[Any, Any]:
    """DPO's pulls under a shaping, reweighted where the shaping does that after the loss."""
    d_w, d_l = pulls("dpo", terms, {"beta": beta}, [shaping])
    chosen = parse_shaping(shaping)
    if chosen.shaping.reweight is None:
        return d_w, d_l
    new = chosen.shaping.reweight.apply(Measured(d_w, d_l, *norms), chosen.options, {})
    assert set(new.columns) == set(chosen.shaping.columns)
    return new.chosen, new.rejected


@pytest.mark.parametrize("name", SHAPINGS)
@settings(max_examples=40, deadline=None)
@given(terms=all_terms(), beta=st.floats(0.05, 2), seed=st.integers(0, 1000))
def test_shaped_pulls_equal_the_closed_form(name: str, terms: Terms, beta: float, seed: int) -> None:
    norms = tuple(np.random.default_rng(seed).uniform(0.1, 9, (2, len(terms.a))))
    ours = shaped_pulls(name, terms, beta, tuple(torch.from_numpy(norm) for norm in norms))  # type: ignore[arg-type]
    theirs = SHAPED[name](numbers(terms), beta, norms)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=10, deadline=None)
@given(terms=all_terms())
def test_the_comparison_can_fail(name: str, terms: Terms) -> None:
    def wrong(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
        d_w, d_l = CLOSED[name](t, p)
        return d_w * 1.001 + 1e-3, d_l

    with pytest.raises(AssertionError):
        assert_pulls(name, terms, dict(OBJECTIVES[name].defaults), wrong)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), terms=all_terms())
def test_the_loss_is_differentiable_in_live_terms(name: str, data: st.DataObject, terms: Terms) -> None:
    hyper = data.draw(hypers(name))
    a, b = terms.a.clone().requires_grad_(), terms.b.clone().requires_grad_()
    losses, _ = pair_loss(name, replace(terms, a=a, b=b), hyper)
    grad_a, grad_b = torch.autograd.grad(losses.sum(), (a, b), materialize_grads=True)
    d_w, d_l = pulls(name, terms, hyper)
    assert torch.equal(-grad_a, d_w) and torch.equal(grad_b, d_l)
    assert losses.shape == terms.a.shape


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), terms=all_terms(), seed=st.integers(0, 1000))
def test_the_weighted_margin_never_falls(name: str, data: st.DataObject, terms: Terms, seed: int) -> None:
    """One gradient step on ℓ: d_w Δa − d_l Δb = ‖∇ℓ‖² ≥ 0, so with positive pulls case 4 cannot happen."""
    hyper = data.draw(hypers(name))
    rows = np.random.default_rng(seed).normal(size=(2, len(terms.a), 3))
    g_w, g_l = (torch.from_numpy(g) for g in rows)
    theta = torch.zeros_like(g_w, requires_grad=True)
    live = replace(terms, a=terms.a + (g_w * theta).sum(1), b=terms.b + (g_l * theta).sum(1))
    (gradient,) = torch.autograd.grad(pair_loss(name, live, hyper)[0].sum(), theta)
    delta_a, delta_b = -(g_w * gradient).sum(1), -(g_l * gradient).sum(1)
    d_w, d_l = pulls(name, terms, hyper)
    torch.testing.assert_close(d_w * delta_a - d_l * delta_b, (gradient**2).sum(1), rtol=1e-9, atol=1e-12)
    assert not ((d_w > 0) & (d_l > 0) & (delta_a < -1e-12) & (delta_b > 1e-12)).any()


def test_pulls_do_not_touch_the_graph_and_work_without_gradients() -> None:
    a = torch.tensor([-3.0, -2.0], requires_grad=True)
    one = torch.ones(2)
    terms = Terms(a * 2, torch.tensor([-5.0, -1.0]), one, one, r_w=-one, r_l=-one)
    with torch.no_grad():
        d_w, d_l = pulls("dpo", terms)
    assert not d_w.requires_grad and a.grad is None
    assert torch.equal(d_w, d_l) and (d_w > 0).all()
