"""Token masks: masked log-ratios, the penalty, and the learnable read-out."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from objective_terms import all_terms

from dyn_probe.errors import BadInput
from dyn_probe.objectives import SHAPINGS, Terms, TokenMask, composes_with, pair_loss, parse_shaping, pulls


@settings(max_examples=40, deadline=None)
@given(terms=all_terms())
def test_the_loss_as_written_token_by_token(terms: Terms) -> None:
    """−log σ(β[Σ m_w r_w − Σ m_l r_l]) + η_s·d·s·(Σ m_w + Σ m_l), summed in plain Python."""
    losses, columns = pair_loss("dpo", terms, {"beta": 0.3}, ["token-mask:penalty=0.2,wait=0.01,floor=0.3"])
    assert terms.token_logps is not None and terms.ref_token_logps is not None
    assert terms.response_mask is not None and terms.token_mask is not None
    pairs = len(terms.a)
    whole = [float((terms.h_w[k] - terms.h_l[k]) / (terms.n_w[k] + terms.n_l[k])) for k in range(pairs)]
    signal = max(0.0, sum(whole) / pairs)
    for pair in range(pairs):
        sums, masks = [], []
        for row in (pair, pair + pairs):
            where = terms.response_mask[row].nonzero().flatten().tolist()
            ratio = terms.token_logps[row] - terms.ref_token_logps[row]
            sums.append(sum(float(terms.token_mask[row, t] * ratio[t]) for t in where))
            masks.append([float(terms.token_mask[row, t]) for t in where])
        margin, both = 0.3 * (sums[0] - sums[1]), [*masks[0], *masks[1]]
        expected = math.log1p(math.exp(-margin))
        if signal > 0.01 and sum(both) > 0.3 * len(both):
            expected += 0.2 * (0.3 / (1 + math.exp(margin))) * signal * sum(both)
        assert float(losses[pair]) == pytest.approx(expected, rel=1e-5)
        for side, mask in zip(("chosen", "rejected"), masks, strict=True):
            assert float(columns[f"mask_{side}"][pair]) == pytest.approx(sum(mask) / len(mask), rel=1e-5)
        assert float(columns["mask_spread"][pair]) == pytest.approx(statistics.pstdev(both), rel=1e-4, abs=1e-6)
        assert float(columns["mask_signal"][pair]) == pytest.approx(signal, rel=1e-4, abs=1e-6)


def one_pair(m: float, ratio: float = 1.0) -> Terms:
    """One token on each side, with log-ratio ±ratio and mask m."""
    tokens, n = torch.tensor([[ratio], [-ratio]]), torch.ones(1)
    mask = torch.full((2, 1), m, requires_grad=True)
    return Terms(
        tokens[0], tokens[1], n, n, r_w=torch.zeros(1), r_l=torch.zeros(1), token_logps=tokens,
        ref_token_logps=torch.zeros(2, 1), response_mask=torch.ones(2, 1), token_mask=mask,
    )  # fmt: skip


@pytest.mark.parametrize(("ratio", "m", "pressed"), [(0.01, 0.5, False), (1.0, 0.01, False), (1.0, 0.5, True)])
def test_the_penalty_waits_for_a_margin_and_spares_masks_that_are_nearly_gone(ratio, m, pressed) -> None:
    plain = pair_loss("dpo", one_pair(m, ratio), None, ["token-mask:penalty=0"])[0]
    assert bool(pair_loss("dpo", one_pair(m, ratio), None, ["token-mask"])[0] > plain) is pressed


def test_a_token_stays_open_that_adds_more_to_the_margin_than_the_average_one() -> None:
    """Two tokens a side: the gradient on the mask of the one that adds the more is negative, of the other positive."""
    tokens, n = torch.tensor([[1.0, 0.1], [-1.0, -0.1]]), torch.full((1,), 2)
    mask = torch.full((2, 2), 0.5, requires_grad=True)
    a, b = tokens.sum(1).chunk(2)
    terms = Terms(
        a, b, n, n, r_w=a * 0, r_l=a * 0, token_logps=tokens, ref_token_logps=tokens * 0,
        response_mask=torch.ones(2, 2), token_mask=mask,
    )  # fmt: skip
    loss = pair_loss("dpo", terms, None, ["token-mask"])[0].sum()
    (gradient,) = torch.autograd.grad(loss, mask)
    assert (gradient[:, 0] < 0).all() and (gradient[:, 1] > 0).all()


def test_without_a_reference_masks_weigh_log_probabilities() -> None:
    terms = one_pair(0.5)
    bare = Terms(
        terms.a, terms.b, terms.n_w, terms.n_l, token_logps=terms.token_logps, response_mask=terms.response_mask,
        token_mask=terms.token_mask,
    )  # fmt: skip
    losses, columns = pair_loss("simpo", bare, {"beta": 2.0, "gamma": 0.0}, ["token-mask"])
    pull = 2 / (1 + math.exp(2.0))
    assert float(columns["mask_signal"]) == 1.0
    assert float(losses.detach()) == pytest.approx(math.log1p(math.exp(-2.0)) + pull * 1.0 * 1.0, rel=1e-5)
    with pytest.raises(BadInput, match="does not compose"):
        pair_loss("cpo", bare, None, ["token-mask"])


def test_the_slope_rises_by_a_constant_factor_and_then_stays() -> None:
    mask = TokenMask(4, slope=16.0, slope_start=1.0, anneal=0.5)
    assert [mask.slope_at(done) for done in (0, 0.125, 0.25, 0.5, 1)] == pytest.approx([1, 2, 4, 16, 16])
    assert TokenMask(4, slope=16.0, anneal=0.0).slope_at(0) == 16


def test_a_step_of_adam_moves_the_read_out_by_at_most_its_learning_rate_whatever_the_width() -> None:
    for width in (4, 400):
        mask = TokenMask(width, slope=1.0, slope_start=1.0)
        optimizer = torch.optim.Adam([mask.readout.weight], lr=0.05)
        hidden = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0))
        mask(hidden)[0, 0].backward()
        optimizer.step()
        moved = torch.logit(mask(hidden)[0, 0])
        assert float(moved) == pytest.approx(-0.05, rel=1e-3)


@pytest.mark.parametrize("name", composes_with("token-mask"))
@settings(max_examples=10, deadline=None)
@given(terms=all_terms())
def test_a_mask_of_ones_is_the_plain_objective(name: str, terms: Terms) -> None:
    assert terms.token_mask is not None
    open_mask = replace(terms, token_mask=torch.ones_like(terms.token_mask))
    losses, _ = pair_loss(name, open_mask, shapings=["token-mask:penalty=0"])
    torch.testing.assert_close(losses, pair_loss(name, terms)[0])
    for ours, plain in zip(pulls(name, open_mask, None, ["token-mask"]), pulls(name, terms), strict=True):
        torch.testing.assert_close(ours, plain)


@settings(max_examples=20, deadline=None)
@given(terms=all_terms())
def test_pulls_are_on_the_masked_sums(terms: Terms) -> None:
    """∂ℓ/∂(token log-probability) = −d_w·m for chosen, d_l·m for rejected; nothing from elsewhere."""
    assert terms.token_logps is not None and terms.token_mask is not None and terms.response_mask is not None
    tokens = terms.token_logps.clone().requires_grad_()
    mask = terms.token_mask.clone().requires_grad_()
    shaping = ["gate-seq:form=gradient", "token-mask"]
    losses, columns = pair_loss("dpo", replace(terms, token_logps=tokens, token_mask=mask), None, shaping)
    (gradient, mask_gradient) = torch.autograd.grad(losses.sum(), (tokens, mask))
    d_w, d_l = pulls("dpo", terms, None, shaping)
    expected = torch.cat([-d_w, d_l])[:, None] * terms.token_mask * terms.response_mask
    torch.testing.assert_close(gradient, expected)
    assert (mask_gradient[~terms.response_mask] == 0).all()
    assert {"gate", "gate_statistic", *SHAPINGS["token-mask"].columns} == set(columns)
    assert losses.requires_grad and not any(column.requires_grad for column in columns.values())


@settings(max_examples=20, deadline=None)
@given(terms=all_terms())
def test_gates_read_the_unmasked_response(terms: Terms) -> None:
    for shapings in (["gate-seq", "token-mask"], ["token-mask", "gate-seq"]):
        both = pair_loss("dpo", terms, None, shapings)[1]
        assert torch.equal(both["gate"], pair_loss("dpo", terms, None, ["gate-seq"])[1]["gate"])


def test_the_read_out_starts_flat_and_learns_only_from_its_own_gradient() -> None:
    hidden = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = TokenMask(5, slope=3.0, threshold=0.5)
    m = mask(hidden)
    torch.testing.assert_close(m, torch.full((4, 7), torch.sigmoid(torch.tensor(-1.5)).item()))
    (m * torch.arange(7.0)).sum().backward()
    assert hidden.grad is None and mask.readout.weight.grad is not None
    assert mask.readout.weight.grad.abs().sum() > 0


def test_the_read_out_can_send_its_gradient_into_the_model() -> None:
    hidden = torch.ones(2, 3, 5, requires_grad=True)
    mask = TokenMask(5, slope=5.0, through_hidden=True)
    torch.nn.init.ones_(mask.readout.weight)
    m = mask(hidden)
    torch.testing.assert_close(m, torch.full((2, 3), torch.sigmoid(torch.tensor(5.0)).item()))
    m.sum().backward()
    assert hidden.grad is not None and (hidden.grad > 0).all()


def test_a_sparse_mask_is_learned_where_one_token_decides() -> None:
    """Two tokens, the first shared: with the penalty the mask of the second ends above that of the first."""
    shared, good, bad = torch.eye(3)
    hidden = torch.stack([torch.stack([shared, good]), torch.stack([shared, bad])])
    mask = TokenMask(3, slope=2.0)
    optimizer = torch.optim.SGD(mask.parameters(), lr=1.0)
    ratios = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    n, said = torch.tensor([2]), torch.ones(2, 2)
    for _ in range(50):
        a, b = ratios.sum(1).chunk(2)
        terms = Terms(
            a, b, n, n, r_w=a * 0, r_l=b * 0, token_logps=ratios, ref_token_logps=ratios * 0,
            response_mask=said, token_mask=mask(hidden),
        )  # fmt: skip
        optimizer.zero_grad()
        pair_loss("dpo", terms, {"beta": 1.0}, ["token-mask"])[0].sum().backward()
        optimizer.step()
    m = mask(hidden)
    assert (m[:, 1] > 0.7).all() and (m[:, 0] < 0.3).all()


def test_the_options_name_the_read_outs_numbers() -> None:
    given = {"penalty": 0.5, "slope": 3.0, "threshold": -1.0, "through_hidden": True, "readout_lr": 0.1, "wait": 0.0}
    text = ",".join(f"{name}={str(value).lower()}" for name, value in given.items())
    assert parse_shaping(f"token-mask:{text}").options == {**SHAPINGS["token-mask"].defaults, **given}
