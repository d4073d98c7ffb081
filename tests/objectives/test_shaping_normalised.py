"""Pairwise-normalised updates: the direction is g_w/‖g_w‖ − g_l/‖g_l‖, and both conditions hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_terms import all_terms, hypers

from dyn_probe.objectives import Terms, composes_with, normalised_pulls, pulls, surrogate_loss

POSITIVE = ("dpo", "rdpo", "simpo", "dpop", "kto", "cpo", "orpo", "dpo_shift", "slic_hf", "rrhf")
"""Objectives whose pulls are never negative (dpo without label smoothing)."""


def gradients(pairs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``g_w, g_l`` [B, 5] in random, partly nearly parallel, directions."""
    generator = torch.Generator().manual_seed(seed)
    shared, own_w, own_l = torch.randn(3, pairs, 5, dtype=torch.float64, generator=generator)
    stretch = torch.exp(3 * torch.randn(2, pairs, 1, dtype=torch.float64, generator=generator))
    return stretch[0] * (3 * shared + own_w), stretch[1] * (3 * shared + own_l)


def draw_pulls(name: str, data: Any, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
    hyper = data.draw(hypers(name)) | ({"label_smoothing": 0.0} if name == "dpo" else {})
    return pulls(name, terms, hyper, ["pairwise-normalised"])


@pytest.mark.parametrize("name", composes_with("pairwise-normalised"))
@settings(max_examples=25, deadline=None)
@given(data=st.data(), terms=all_terms(), seed=st.integers(0, 1000))
def test_the_update_is_normalised(name: str, data: st.DataObject, terms: Terms, seed: int) -> None:
    d_w, d_l = draw_pulls(name, data, terms)
    g_w, g_l = gradients(len(d_w), seed)
    new = normalised_pulls(d_w, d_l, g_w.norm(dim=1), g_l.norm(dim=1))
    update = new.chosen[:, None] * g_w - new.rejected[:, None] * g_l
    scalar = torch.sqrt((d_w * d_l).abs())[:, None]
    unit = d_w.sign()[:, None] * g_w / g_w.norm(dim=1)[:, None]
    unit = unit - d_l.sign()[:, None] * g_l / g_l.norm(dim=1)[:, None]
    torch.testing.assert_close(update, scalar * unit, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(new.normaliser_chosen * d_w, new.chosen)
    torch.testing.assert_close(new.normaliser_rejected * d_l, new.rejected)


@pytest.mark.parametrize("name", POSITIVE)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), terms=all_terms(), seed=st.integers(0, 1000))
def test_both_conditions_hold_for_every_pair(name: str, data: st.DataObject, terms: Terms, seed: int) -> None:
    d_w, d_l = draw_pulls(name, data, terms)
    assert (d_w >= 0).all() and (d_l >= 0).all()
    g_w, g_l = gradients(len(d_w), seed)
    new = normalised_pulls(d_w, d_l, g_w.norm(dim=1), g_l.norm(dim=1))
    update = new.chosen[:, None] * g_w - new.rejected[:, None] * g_l
    small = 1e-12 * (1 + (g_w**2).sum(1) + (g_l**2).sum(1))
    assert ((g_w * update).sum(1) >= -small).all() and ((g_l * update).sum(1) <= small).all()


def test_without_normalising_the_conditions_fail_somewhere() -> None:
    g_w, g_l = gradients(50, 0)
    update = g_w - g_l
    assert ((g_w * update).sum(1) < 0).any() and ((g_l * update).sum(1) > 0).any()


@settings(max_examples=25, deadline=None)
@given(terms=all_terms())
def test_with_equal_pulls_the_scalar_is_the_objectives_own(terms: Terms) -> None:
    """DPO: C = βσ(−margin)."""
    d_w, d_l = pulls("dpo", terms, {"beta": 0.3})
    three, seven = torch.full_like(d_w, 3), torch.full_like(d_w, 7)
    new = normalised_pulls(d_w, d_l, three, seven)
    scalar = 0.3 * torch.sigmoid(-0.3 * (terms.h_w - terms.h_l))
    torch.testing.assert_close(new.chosen, scalar / 3)
    torch.testing.assert_close(new.rejected, scalar / 7)


def test_zero_pulls_and_zero_norms_give_zero_and_signs_stay() -> None:
    d_w, d_l = torch.tensor([0.0, 1.0, -4.0, 4.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    new = normalised_pulls(d_w, d_l, torch.tensor([1.0, 0.0, 2.0, 2.0]), torch.ones(4))
    assert new.chosen.tolist() == [0, 0, -1, 1] and new.rejected.tolist() == [0, 1, -2, -2]
    assert all(torch.isfinite(x).all() for x in new)


@settings(max_examples=10, deadline=None)
@given(terms=all_terms(), seed=st.integers(0, 1000))
def test_the_surrogate_has_the_wanted_gradient(terms: Terms, seed: int) -> None:
    g_w, g_l = gradients(len(terms.a), seed)
    theta = torch.zeros_like(g_w, requires_grad=True)
    d_w, d_l = pulls("dpo", terms)
    losses = surrogate_loss((g_w * theta).sum(1), (g_l * theta).sum(1), d_w, d_l)
    (gradient,) = torch.autograd.grad(losses.sum(), theta)
    torch.testing.assert_close(-gradient, d_w[:, None] * g_w - d_l[:, None] * g_l)


@pytest.mark.parametrize("name", ["sft", "extended_sft"])
def test_objectives_without_opposed_pulls_refuse_it(name: str) -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match="does not compose"):
        pulls(name, Terms(-one, -one, one, one), shapings=["pairwise-normalised"])
