"""Gate-DPO: what the gate reads, and what exactly it does to the pulls in each form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_terms import all_terms, hypers

from dyn_probe.objectives import OBJECTIVES, Terms, composes_with, pair_loss, pulls

GATES = ("gate-seq", "gate-q10")
GATED = composes_with("gate-seq")
RATIO_IS_CONSTANT = ("dpo", "rdpo", "simpo", "ipo", "dpo_shift")
"""Objectives whose d_l/d_w does not depend on a and b."""


def gate_of(terms: Terms, gate: str) -> torch.Tensor:
    return pair_loss("dpo", terms, shapings=[gate])[1]["gate"]


@settings(max_examples=50, deadline=None)
@given(terms=all_terms())
def test_the_gate_reads_the_rejected_probabilities(terms: Terms) -> None:
    assert terms.token_logps is not None and terms.response_mask is not None
    rows = list(zip(terms.token_logps.chunk(2)[1], terms.response_mask.chunk(2)[1], strict=True))
    tokens = [np.exp(row[said].numpy()) for row, said in rows]
    seq = [np.prod(p) ** (1 / p.size) for p in tokens]
    q10 = [np.quantile(p, 0.10) for p in tokens]
    for gate, statistic, tau in (("gate-seq", seq, 0.10), ("gate-q10", q10, 0.005)):
        columns = pair_loss("dpo", terms, shapings=[gate])[1]
        np.testing.assert_allclose(columns["gate_statistic"], statistic, rtol=1e-9)
        np.testing.assert_allclose(columns["gate"], 1 / (1 + np.exp(-50 * (np.array(statistic) - tau))), rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(terms=all_terms(), q=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_the_quantile_is_an_option(terms: Terms, q: float) -> None:
    assert terms.token_logps is not None and terms.response_mask is not None
    rows = zip(terms.token_logps.chunk(2)[1], terms.response_mask.chunk(2)[1], strict=True)
    wanted = [np.quantile(np.exp(row[said].numpy()), q) for row, said in rows]
    columns = pair_loss("dpo", terms, shapings=[f"gate-q10:q={q}"])[1]
    np.testing.assert_allclose(columns["gate_statistic"], wanted, rtol=1e-9)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", GATED)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), terms=all_terms())
def test_gradient_form_scales_the_rejected_pull_and_nothing_else(
    name: str, gate: str, data: st.DataObject, terms: Terms
) -> None:
    """Loss and d_w bit for bit as without the gate; d_l = g·d_l: the ratio is g times the ungated one."""
    hyper, shaping = data.draw(hypers(name)), [f"{gate}:form=gradient,alpha=7,tau=0.3"]
    losses, columns = pair_loss(name, terms, hyper, shaping)
    d_w, d_l = pulls(name, terms, hyper, shaping)
    bare_w, bare_l = pulls(name, terms, hyper)
    assert torch.equal(losses, pair_loss(name, terms, hyper)[0])
    assert torch.equal(d_w, bare_w)
    torch.testing.assert_close(d_l, columns["gate"] * bare_l, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [n for n in GATED if n != "orpo"])
@settings(max_examples=25, deadline=None)
@given(data=st.data(), terms=all_terms())
def test_value_form_is_the_ungated_objective_at_the_gated_log_ratio(
    name: str, data: st.DataObject, terms: Terms
) -> None:
    """With h_l′ = g·h_l (without a reference, b′ = g·b): ℓ = ℓ(b′), d_w = d_w(b′), d_l = g·d_l(b′)."""
    hyper, shaping = data.draw(hypers(name)), ["gate-seq:alpha=7,tau=0.3"]
    losses, columns = pair_loss(name, terms, hyper, shaping)
    origin = terms.r_l if OBJECTIVES[name].needs_reference else terms.b * 0
    assert origin is not None
    moved = replace(terms, b=origin + columns["gate"] * (terms.b - origin))
    there_w, there_l = pulls(name, moved, hyper)
    d_w, d_l = pulls(name, terms, hyper, shaping)
    for ours, theirs in (
        (losses, pair_loss(name, moved, hyper)[0]), (d_w, there_w), (d_l, columns["gate"] * there_l)
    ):  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(terms=all_terms())
def test_value_form_on_orpo_scales_the_rejected_log_odds(terms: Terms) -> None:
    (d_w, d_l), gate = pulls("orpo", terms, {"lambda": 0.7}, ["gate-seq"]), gate_of(terms, "gate-seq")
    chosen, rejected = torch.exp(terms.a / terms.n_w), torch.exp(terms.b / terms.n_l)
    log_odds_ratio = torch.log(chosen / (1 - chosen)) - gate * torch.log(rejected / (1 - rejected))
    pull = 0.7 * torch.sigmoid(-log_odds_ratio)
    torch.testing.assert_close(d_w, (1 + pull / (1 - chosen)) / terms.n_w, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(d_l, gate * pull / (1 - rejected) / terms.n_l, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("form", ["value", "gradient"])
@pytest.mark.parametrize("name", RATIO_IS_CONSTANT)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), terms=all_terms())
def test_the_ratio_of_pulls_is_g_times_the_ungated_ratio(
    name: str, form: str, data: st.DataObject, terms: Terms
) -> None:
    """In both forms, for these objectives; for the others see the tests above."""
    hyper = data.draw(hypers(name)) | ({"label_smoothing": 0.0} if name == "dpo" else {})
    shaping = [f"gate-seq:form={form},alpha=7,tau=0.3"]
    gate = pair_loss(name, terms, hyper, shaping)[1]["gate"]
    (d_w, d_l), (bare_w, bare_l) = pulls(name, terms, hyper, shaping), pulls(name, terms, hyper)
    torch.testing.assert_close(d_l * bare_w, gate * d_w * bare_l, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("form", ["value", "gradient"])
@pytest.mark.parametrize("name", GATED)
@settings(max_examples=5, deadline=None)
@given(terms=all_terms())
def test_an_open_gate_changes_nothing_bit_for_bit(name: str, form: str, gate: str, terms: Terms) -> None:
    shaping = [f"{gate}:form={form},alpha=1e6,tau=0"]
    losses, columns = pair_loss(name, terms, shapings=shaping)
    assert (columns["gate"] == 1).all()
    assert torch.equal(losses, pair_loss(name, terms)[0])
    assert all(torch.equal(x, y) for x, y in zip(pulls(name, terms, None, shaping), pulls(name, terms), strict=True))


@pytest.mark.parametrize("gate", GATES)
@settings(max_examples=20, deadline=None)
@given(terms=all_terms())
def test_no_gradient_flows_through_the_gate(gate: str, terms: Terms) -> None:
    """The derivative in b is that with g held as a number: a finite difference with the gate frozen."""
    assert terms.token_logps is not None
    tokens = terms.token_logps.clone().requires_grad_()
    a, b = tokens.sum(1).chunk(2)
    live = replace(terms, a=a, b=b, token_logps=tokens)
    losses, columns = pair_loss("dpo", live, shapings=[gate])
    (gradient,) = torch.autograd.grad(losses.sum(), tokens)
    d_w, d_l = pulls("dpo", terms, None, [gate])
    expected = torch.cat([-d_w, d_l])[:, None].expand_as(gradient)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-15)
    assert not columns["gate"].requires_grad


@pytest.mark.parametrize("form", ["value", "gradient"])
def test_the_gate_of_an_impossible_response_is_as_good_as_closed(form: str) -> None:
    """With the published constants g falls to σ(−5) and no further."""
    far, n = torch.tensor([-1e4], dtype=torch.float64), torch.tensor([10])
    terms = Terms(far, far, n, n, r_w=far + 5, r_l=far + 5)
    d_w, d_l = pulls("dpo", terms, None, [f"gate-seq:form={form}"])
    torch.testing.assert_close(d_l / d_w, torch.sigmoid(far * 0 - 5))
    assert d_w.item() > 0.04


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_quantile_works_in_low_precision(dtype: torch.dtype) -> None:
    tokens = torch.log(torch.tensor([[0.5, 0.5], [0.25, 1.0]])).to(dtype)
    a, b = tokens.sum(1).chunk(2)
    terms = Terms(a, b, a * 0 + 2, a * 0 + 2, r_w=a, r_l=b, token_logps=tokens, response_mask=tokens * 0 + 1)
    statistic = pair_loss("dpo", terms, shapings=["gate-q10"])[1]["gate_statistic"]
    assert statistic.item() == pytest.approx(0.25 + 0.1 * 0.75, rel=1e-2)


@pytest.mark.parametrize("name", ["sft", "extended_sft"])
def test_objectives_that_push_nothing_down_refuse_the_gate(name: str) -> None:
    one: Any = torch.ones(1)
    with pytest.raises(ValueError, match=r"does not compose.*: dpo, .*simpo"):
        pair_loss(name, Terms(-one, -one, one, one), shapings=["gate-seq"])
