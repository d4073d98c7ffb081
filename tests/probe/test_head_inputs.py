"""CHES against a plain forward with ``output_hidden_states`` in float64, response by response, for every family."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import FAMILIES, make_batch, make_model
from hand_written import HAND_WRITTEN

from dyn_probe import PairBatch, Probe, entanglement, sequence_logps
from dyn_probe.probe.head_inputs import HeadInputs

pytestmark = pytest.mark.usefixtures("double_everywhere")
NAMES = ("ches", "ches_normalised")


def recorded(model, batch, **options):
    """Rows of one recorded forward and backward."""
    with Probe(model, certify=False) as probe, probe.step(0, batch.ids, responses=batch.response_mask, **options):
        logps = sequence_logps(model, batch)
        probe.pairs(logps, lengths=batch.lengths)
        (logps * torch.linspace(-1, -2, len(logps), dtype=logps.dtype)).sum().backward()
    return probe.rows


def by_hand(model, batch):
    """(CHES, its length-normalised form) of each pair, each response alone without its padding, by loops."""
    responses = []
    for ids, attended, mask in zip(batch.input_ids, batch.attention_mask, batch.response_mask, strict=True):
        real = attended.bool()
        ids, mask = ids[real], mask[real]
        with torch.no_grad():
            last = model(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0].double()
        responses.append([last[t - 1] for t in range(len(ids)) if mask[t]])
    found = []
    for chosen, rejected in zip(responses[: batch.pairs], responses[batch.pairs :], strict=True):
        for h_w, h_l in ((sum(chosen), sum(rejected)), (sum(chosen) / len(chosen), sum(rejected) / len(rejected))):
            found.append(float(h_w @ h_l - h_w @ h_w))
    return np.array(found).reshape(-1, 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_that_of_the_hidden_states_that_enter_the_head(name: str) -> None:
    model, batch = make_model(name), make_batch()
    rows = recorded(model, batch)
    expected = by_hand(model, batch)
    assert np.array([[row[key] for key in NAMES] for row in rows]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_twin_reads_is_what_enters_the_head(name: str) -> None:
    model, batch, entered = make_model(name), make_batch(), []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    assert torch.equal(entered[0].view_as(out.hidden_states[-1]), out.hidden_states[-1])


def test_a_head_alone_is_entangled_by_it_up_to_the_residuals() -> None:
    """With one residual for all tokens, ⟨g_w, g_l⟩ − ‖g_w‖² of the head's weight is CHES times its square."""
    draw = np.random.default_rng(0)
    h_w, h_l, residual = draw.normal(size=(5, 7)), draw.normal(size=(6, 7)), draw.normal(size=11)
    g_w, g_l = (sum(np.outer(residual, h) for h in side) for side in (h_w, h_l))
    (found,) = entanglement.ches(h_w.sum(0)[None], h_l.sum(0)[None])
    assert (g_w * g_l).sum() - (g_w**2).sum() == pytest.approx(found * (residual**2).sum())


def test_padding_on_either_side_checkpointing_and_bfloat16_change_nothing_else() -> None:
    model, batch = make_model("llama"), make_batch()
    expected = recorded(model, batch)
    flipped = [torch.zeros_like(batch.input_ids) for _ in range(3)]
    for new, old in zip(flipped, (batch.input_ids, batch.attention_mask, batch.response_mask), strict=True):
        for row in range(len(old)):
            real = batch.attention_mask[row].bool()
            new[row, -int(real.sum()) :] = old[row][real]
    other_side = PairBatch(*flipped)
    model.gradient_checkpointing_enable()
    for one in (batch, other_side):
        assert [[row[key] for key in NAMES] for row in recorded(model, one)] == [
            pytest.approx([row[key] for key in NAMES], rel=1e-9) for row in expected
        ]
    low = recorded(make_model("llama").to(torch.bfloat16), batch)
    assert [row["ches_normalised"] for row in low] == pytest.approx(
        [row["ches_normalised"] for row in expected], rel=0.05, abs=0.5
    )


def test_packed_rows_are_taken_apart_by_their_segments() -> None:
    """Two rows of eight positions hold four responses of two pairs."""
    segments = torch.tensor([[0, 0, 0, 2, 2, 2, 2, -1], [1, 1, 1, 1, 3, 3, 3, 3]])
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 1, 1, 1]])
    hidden = torch.randn(2, 8, 5)
    hidden[0, 7] = torch.nan
    seen = HeadInputs(mask, segments)
    seen._receive(torch.nn.Identity(), (), SimpleNamespace(last_hidden_state=hidden.requires_grad_()))
    columns, values = seen.columns(), hidden.detach().double().numpy()
    places = [(row, t) for row in range(2) for t in range(8) if mask[row, t]]
    for pair in range(2):
        chosen, rejected = (
            np.array([values[row, t - 1] for row, t in places if segments[row, t] == side]) for side in (pair, pair + 2)
        )
        by_sums = chosen.sum(0) @ (rejected.sum(0) - chosen.sum(0))
        by_means = chosen.mean(0) @ (rejected.mean(0) - chosen.mean(0))
        assert columns["ches"][pair] == pytest.approx(by_sums, rel=1e-5)
        assert columns["ches_normalised"][pair] == pytest.approx(by_means, rel=1e-5)


def test_a_frozen_head_is_seen_too() -> None:
    model, batch = make_model("llama"), make_batch()
    model.get_output_embeddings().requires_grad_(False)
    expected = by_hand(model, batch)
    assert [[row[key] for key in NAMES] for row in recorded(model, batch)] == pytest.approx(expected, rel=1e-9)


def test_it_is_null_where_the_head_cannot_be_seen_or_no_mask_is_given() -> None:
    batch = make_batch()
    for make in HAND_WRITTEN:
        try:
            rows = recorded(make().double(), batch)
        except TypeError:
            continue
        assert all(key not in row for row in rows for key in NAMES)
    model = make_model("llama")
    with Probe(model, certify=False) as probe, probe.step(0, batch.ids):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        logps.sum().backward()
    assert all(key not in row for row in probe.rows for key in NAMES)


def test_nothing_is_left_on_the_model_and_training_is_the_same() -> None:
    grads = []
    for responses in (True, False):
        model, batch = make_model("gpt2"), make_batch()
        mask = batch.response_mask if responses else None
        with Probe(model, certify=False) as probe, probe.step(0, batch.ids, responses=mask):
            logps = sequence_logps(model, batch)
            probe.pairs(logps)
            logps.sum().backward()
        assert not any(module._forward_hooks for module in model.modules())
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(left, right) for left, right in zip(*grads, strict=True))
