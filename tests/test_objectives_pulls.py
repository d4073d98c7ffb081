"""Law: the pulls are the derivatives of the loss; here against closed forms in numpy, for every objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_terms import all_terms, hypers

from dyn_probe.objectives import OBJECTIVES, Terms, pair_loss, pulls

Closed = Callable[[Any, dict[str, Any]], tuple[Any, Any]]


def sigmoid(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(x / 2))


def dpo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    x = p["beta"] * (t.hw - t.hl)
    pull = p["beta"] * (sigmoid(-x) - p["label_smoothing"])
    return pull, pull


def rdpo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    pull = p["beta"] * sigmoid(-p["beta"] * (t.hw - t.hl) - p["alpha"] * (t.nw - t.nl))
    return pull, pull


def simpo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    pull = p["beta"] * sigmoid(p["gamma"] - p["beta"] * (t.a / t.nw - t.b / t.nl))
    return pull / t.nw, pull / t.nl


def ipo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    nw, nl = (t.nw, t.nl) if p["average"] else (1, 1)
    short = 1 / p["beta"] - 2 * (t.hw / nw - t.hl / nl)
    return short / nw, short / nl


def rrhf(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    misordered = (t.b / t.nl > t.a / t.nw).astype(float)
    return p["lambda"] + misordered / t.nw, misordered / t.nl


def slic_hf(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    active = (p["delta"] - t.a + t.b > 0).astype(float)
    return p["lambda"] + active, active


def cpo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    pull = p["beta"] * sigmoid(p["beta"] * (t.b - t.a))
    return pull + p["lambda"] / (t.nw if p["mean_nll"] else 1), pull


def dpop(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    lost = np.maximum(0, -t.hw)
    pull = p["beta"] * sigmoid(-p["beta"] * (t.hw - t.hl - p["lambda"] * lost))
    return pull * (1 + p["lambda"] * (t.hw < 0)), pull


def kto(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    z = p["beta"] * np.maximum(0, t.kl)
    up, down = sigmoid(p["beta"] * t.hw - z), sigmoid(z - p["beta"] * t.hl)
    return (p["lambda_w"] * p["beta"] * up * (1 - up), p["lambda_l"] * p["beta"] * down * (1 - down))


def sppo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    win, lose = (t.win_w, t.win_l) if p["soft"] else (1.0, 0.0)
    return 2 * ((win - 0.5) / p["beta"] - t.hw), 2 * (t.hl - (lose - 0.5) / p["beta"])


def orpo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    chosen, rejected = np.exp(t.a / t.nw), np.exp(t.b / t.nl)
    odds_ratio = chosen / (1 - chosen) * (1 - rejected) / rejected
    pull = p["lambda"] / (1 + odds_ratio)
    return (1 + pull / (1 - chosen)) / t.nw, pull / (1 - rejected) / t.nl


def cal_dpo(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    target, pull = 0.5 / p["beta"], sigmoid(t.hl - t.hw)
    return pull + 2 * p["kappa"] * (target - t.hw), pull + 2 * p["kappa"] * (t.hl + target)


def dpo_shift(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    factor = p["lambda"] * (1 - t.progress) + t.progress if p["schedule"] else p["lambda"]
    pull = p["beta"] * sigmoid(-p["beta"] * (t.hw - factor * t.hl))
    return pull, factor * pull


def sft(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    return 1 / t.nw, 0 * t.b


def extended_sft(t: Any, p: dict[str, Any]) -> tuple[Any, Any]:
    return 1 / t.nw, -1 / t.nl


CLOSED: dict[str, Closed] = {
    form.__name__: form
    for form in (
        dpo, rdpo, simpo, ipo, rrhf, slic_hf, cpo, dpop, kto, sppo, orpo, cal_dpo, dpo_shift,
        sft, extended_sft,
    )
}  # fmt: skip


def numbers(t: Terms) -> Any:
    """The terms as numpy arrays under names of their own."""
    assert t.r_w is not None and t.r_l is not None and t.win_w is not None and t.win_l is not None
    return SimpleNamespace(
        a=t.a.numpy(), b=t.b.numpy(), hw=(t.a - t.r_w).numpy(), hl=(t.b - t.r_l).numpy(), nw=t.n_w.numpy(),
        nl=t.n_l.numpy(), kl=float(t.kl or 0), win_w=t.win_w.numpy(), win_l=t.win_l.numpy(),
        progress=t.progress,
    )  # fmt: skip


def assert_pulls(name: str, terms: Terms, hyper: dict[str, Any], closed: Closed) -> None:
    """The pulls of ``name`` are those of the closed form, to float64 rounding."""
    for ours, theirs in zip(pulls(name, terms, hyper), closed(numbers(terms), hyper), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-12)


def test_every_objective_has_a_closed_form() -> None:
    assert list(CLOSED) == list(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), terms=all_terms())
def test_pulls_equal_the_closed_form(name: str, data: st.DataObject, terms: Terms) -> None:
    assert_pulls(name, terms, data.draw(hypers(name)), CLOSED[name])


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
