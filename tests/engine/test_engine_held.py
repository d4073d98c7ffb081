"""What a recorded backward leaves behind, against plain autograd and against forward-mode derivatives."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, make_batch, make_model
from reference.directional import along
from reference.gradients import row_gradients

from dyn_probe import sequence_logps
from dyn_probe.engine.recording import Recording

pytestmark = pytest.mark.usefixtures("double_everywhere")


def recorded(model, batch, weights=None, products=True):
    """What one backward of a DPO loss leaves; with ``weights``, of ``Σ weights · log-probabilities``."""
    with Recording(model, hold=True, products=products) as recording:
        logps = sequence_logps(model, batch)
        recording.watch(logps)
        half = len(logps) // 2
        loss = -F.logsigmoid(0.1 * (logps[:half] - logps[half:])).mean() if weights is None else (logps * weights).sum()
        loss.backward()
        answers = recording.result()
        assert all(bool(one.any()) == products for one in answers.entries)
        return recording.held()


def along_all(held, directions):
    """``[2B]`` inner products with a direction of all parameters."""
    return torch.stack([held.along(name, direction) for name, direction in directions.items()]).sum(0)


def random_like(model, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for n, p in model.named_parameters()
        if p.requires_grad
    }


@cache
def twin(family, tie):
    """Every row's gradient of the model and batch of ``family``, by plain autograd."""
    model, batch = make_model(family, tie_word_embeddings=tie), make_batch()
    return row_gradients(model, batch.input_ids, batch.attention_mask, batch.response_mask)


def close(got, wanted, limit=1e-10) -> bool:
    return bool((got - wanted).abs().max() <= limit * wanted.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_products_the_same_is_held(family):
    held = []
    for products in (True, False):
        model, batch = make_model(family, tie_word_embeddings=True), make_batch()
        held.append((recorded(model, batch, products=products), model))
    (one, model), (other, _) = held
    coefficients = torch.arange(1.0, one.rows + 1, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        sums = [each.weighted(name, coefficients, parameter.shape) for each in (one, other)]
        assert torch.equal(*sums) and torch.equal(one.gram(name, 1), other.gram(name, 1))


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "bloom"])  # its activation has no forward-mode rule
def test_a_direction_equals_the_forward_mode_derivative(family, tie):
    model, batch = make_model(family, tie_word_embeddings=tie), make_batch()
    direction = random_like(model)
    table = model.get_input_embeddings()
    if table.padding_idx is not None:  # torch gives the padding entry no gradient; forward mode knows nothing of that
        next(d for n, d in direction.items() if model.get_parameter(n) is table.weight)[table.padding_idx] = 0.0
    assert close(along_all(recorded(model, batch), direction), along(model, batch, direction))


@pytest.mark.parametrize("wide", [16, 1 << 14])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gram_in_a_metric_equals_brute_force(family, tie, groups, wide, monkeypatch):
    monkeypatch.setattr("dyn_probe.engine.kinds.linear.WIDE", wide)
    model, batch, rows = make_model(family, tie_word_embeddings=tie), make_batch(), twin(family, tie)
    metric = {n: m.abs() + 0.1 for n, m in random_like(model, 5).items()}
    held = recorded(model, batch)
    for name, values in rows.items():
        for scale in (None, metric[name]):
            whole = values @ (values if scale is None else values * scale.flatten()).T
            wanted = torch.stack([whole[g::groups, g::groups] for g in range(groups)])
            assert float((held.gram(name, groups, scale) - wanted).abs().max()) <= 1e-10 * float(whole.abs().max() + 1)


@pytest.mark.parametrize("numbers", [1, 1 << 10, 1 << 30])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_slices_of_the_rows_gradients_are_full_gradients(family, tie, numbers, monkeypatch):
    """Put together, the slices are every row's gradient; a tied table's readings are in those of its head."""
    monkeypatch.setattr("dyn_probe.engine.held.BLOCK", {"cpu": numbers})
    model, batch, rows = make_model(family, tie_word_embeddings=tie), make_batch(), twin(family, tie)
    for weights in (None, torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 0.0], dtype=torch.float64)):
        held, sliced = recorded(model, batch, weights), 0
        for name, values in rows.items():
            shape = model.get_parameter(name).shape
            if (found := held.blocks(name, shape)) is None:
                continue
            scale, slices = found
            taken = [(entries, part.clone()) for entries, part in slices]
            assert [e.stop for e, _ in taken] == [*(e.start for e, _ in taken[1:]), shape[0]] and taken[0][0].start == 0
            assert close(torch.cat([part for _, part in taken], 1) * scale[:, None], values, 1e-9)
            sliced += 1
        assert sliced > 3


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma2"])
def test_weighted_sums_and_rows_that_were_measured_apart(family):
    """Pairs with a vanishing coefficient come from a separate backward: both parts together are all rows."""
    model, batch = make_model(family), make_batch()
    rows = row_gradients(model, batch.input_ids, batch.attention_mask, batch.response_mask)
    held = recorded(model, batch, torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 0.0], dtype=torch.float64))
    assert len(held.parts) == 2
    coefficients = torch.linspace(-1, 2, 6, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        wanted = (coefficients @ rows[name]).reshape(parameter.shape)
        assert torch.allclose(held.weighted(name, coefficients, parameter.shape), wanted, rtol=1e-9, atol=1e-12)
        assert torch.allclose(held.along(name, wanted), rows[name] @ wanted.flatten(), rtol=1e-9, atol=1e-10)


def test_a_wrong_direction_is_caught():
    model, batch = make_model("llama"), make_batch()
    direction = random_like(model)
    wrong = dict(direction, **{"model.norm.weight": direction["model.norm.weight"].flip(0)})
    assert not close(along_all(recorded(model, batch), wrong), along(model, batch, direction))
