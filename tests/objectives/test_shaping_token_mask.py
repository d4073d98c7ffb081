"""Token masks: masked log-ratios, the penalty, and the learnable read-out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from objective_terms import all_terms

from dyn_probe.objectives import Terms, TokenMask, composes_with, pair_loss, parse_shaping, pulls


@settings(max_examples=40, deadline=None)
@given(terms=all_terms())
def test_the_loss_as_written_token_by_token(terms: Terms) -> None:
    """−log σ(β[Σ m_w r_w − Σ m_l r_l]) + η_s(mean m_w + mean m_l), summed in plain Python."""
    losses, columns = pair_loss("dpo", terms, {"beta": 0.3}, ["token-mask:penalty=0.2"])
    assert terms.token_logps is not None and terms.ref_token_logps is not None
    assert terms.response_mask is not None and terms.token_mask is not None
    pairs = len(terms.a)
    for pair in range(pairs):
        sums, means = [], []
        for row in (pair, pair + pairs):
            where = terms.response_mask[row].nonzero().flatten().tolist()
            ratio = terms.token_logps[row] - terms.ref_token_logps[row]
            sums.append(sum(terms.token_mask[row, t] * ratio[t] for t in where))
            means.append(sum(terms.token_mask[row, t] for t in where) / len(where))
        margin = 0.3 * (sums[0] - sums[1])
        expected = torch.log1p(torch.exp(-margin)) + 0.2 * (means[0] + means[1])
        torch.testing.assert_close(losses[pair], expected)
        torch.testing.assert_close(columns["mask_chosen"][pair], means[0])
        torch.testing.assert_close(columns["mask_rejected"][pair], means[1])


@pytest.mark.parametrize("name", composes_with("token-mask"))
@settings(max_examples=10, deadline=None)
@given(terms=all_terms())
def test_a_mask_of_ones_is_the_plain_objective(name: str, terms: Terms) -> None:
    assert terms.token_mask is not None
    open_mask = replace(terms, token_mask=torch.ones_like(terms.token_mask))
    losses, _ = pair_loss(name, open_mask, shapings=["token-mask:penalty=0.5"])
    torch.testing.assert_close(losses, pair_loss(name, terms)[0] + 1.0)
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
    assert {"gate", "gate_statistic", "mask_chosen", "mask_rejected"} == set(columns)
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
    mask = TokenMask(5, through_hidden=True)
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
        pair_loss("dpo", terms, {"beta": 1.0}, ["token-mask:penalty=0.2"])[0].sum().backward()
        optimizer.step()
    m = mask(hidden)
    assert (m[:, 1] > m[:, 0] + 0.2).all()


def test_the_options_name_the_read_outs_numbers() -> None:
    options = parse_shaping("token-mask:slope=3,threshold=-1,penalty=0.5,through_hidden=true").options
    assert options == {"penalty": 0.5, "slope": 3.0, "threshold": -1.0, "through_hidden": True}
