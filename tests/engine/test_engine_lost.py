"""A pull that vanishes in a loss that was said to have none: its pair has no gradients, and all others are exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import make_batch, make_model
from reference.same_graph import gram_of

from dyn_probe import PairBatch, Probe, load_trace, sequence_logps, token_logps
from dyn_probe.pairs import batch_logits

NULL = ["grad_norm_chosen", "grad_norm_rejected", "grad_inner", "grad_cosine", "case_plain", "band_slack"]
NULL += ["predicted_delta_chosen", "predicted_delta_rejected"]
OTHERS = ["pull_chosen", "pull_rejected", "logp_chosen"]
LOST = 1
"""The pair whose chosen response has no pull; its place in the batch."""


def pulled(batch: PairBatch, factor: float) -> torch.Tensor:
    """``[2B]`` weights of the rows in a loss."""
    weights = torch.ones(2 * batch.pairs)
    weights[LOST] = factor
    return weights


def train(probe: Probe, model: torch.nn.Module, batch: PairBatch, weights: list[torch.Tensor], how: str) -> None:
    """A step for each of the weights ``[2B]``, or ``[2B, L]`` of the tokens, and no change of the model."""
    for step, one in enumerate(weights):
        with probe.step(step, batch.ids, learning_rate=1e-3):
            if how == "tokens":
                rows = token_logps(batch_logits(model, batch), batch)
                probe.pairs(rows, mask=batch.response_mask, vanishing=False)
                loss = (rows * (one if one.dim() == 2 else one[:, None])).sum(1).mean()
            else:
                rows = sequence_logps(model, batch)
                probe.pairs(rows, vanishing=False)
                loss = (rows * one).mean()
            probe.one_pass(loss) if how == "one pass" else loss.backward()
        model.zero_grad()


def assert_exact(row, wanted: torch.Tensor, batch: PairBatch) -> None:
    i = batch.ids.index(row.pair_id)
    scale = float((wanted[i, i] * wanted[i + batch.pairs, i + batch.pairs]).sqrt())
    assert abs(row.grad_inner - float(wanted[i, i + batch.pairs])) <= 1e-5 * scale
    assert row.grad_norm_chosen == pytest.approx(float(wanted[i, i].sqrt()), rel=1e-5)


@pytest.mark.parametrize("factor", [0.0, 1e-30])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("how", ["sums", "tokens", "one pass"])
@pytest.mark.parametrize("first", [0, 1])
def test_it_is_lost_alone(first, how, family, factor, tmp_path):
    """It is so in the step that had begun when its numbers arrived too; from then on such pairs are looked for."""
    model, batch = make_model(family, torch.float32), make_batch()
    wanted = gram_of(sequence_logps(model, batch), model)
    weights = [pulled(batch, factor if step >= first else 1.0) for step in range(4)]
    with Probe(model, tmp_path / "run", certify=False) as probe:
        train(probe, model, batch, weights, how)
    trace = load_trace(tmp_path / "run")
    pairs, layers = trace.pairs, trace.layers
    lost = pairs["step"].between(first, first + 1) & (pairs["pair_id"] == batch.ids[LOST])
    assert pairs.loc[lost, NULL].isna().all(axis=None) and pairs.loc[~lost, NULL[:4]].notna().all(axis=None)
    assert pairs.loc[lost, OTHERS].notna().all(axis=None)
    for row in pairs[~lost].itertuples():
        assert_exact(row, wanted, batch)
        assert row.separate_backward == (row.step > first + 1 and row.pair_id == batch.ids[LOST])
    of_lost = layers["step"].between(first, first + 1) & (layers["pair_id"] == batch.ids[LOST])
    assert not of_lost.any() and len(layers) and layers[["grad_norm_chosen", "grad_inner"]].notna().all(axis=None)
    assert trace.steps["lost_rows"].tolist() == [2 * (first <= step <= first + 1) for step in range(4)]
    assert trace.steps["not_finite"].fillna(0).sum() == 0


def test_tokens_that_are_pulled_differently_are_lost_too(tmp_path):
    """And have no pull."""
    model, batch = make_model("llama", torch.float32), make_batch()
    wanted = gram_of(sequence_logps(model, batch), model)
    uneven = torch.ones(batch.input_ids.shape)
    uneven[LOST, batch.response_mask[LOST].nonzero()[0]] = 0.5
    with Probe(model, tmp_path / "run", certify=False) as probe:
        train(probe, model, batch, [uneven], "tokens")
    pairs = load_trace(tmp_path / "run").pairs
    lost = pairs["pair_id"] == batch.ids[LOST]
    assert pairs.loc[lost, [*NULL, "pull_chosen", "pull_rejected"]].isna().all(axis=None)
    for row in pairs[~lost].itertuples():
        assert_exact(row, wanted, batch)


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1.0])
def test_it_has_no_pushes_in_the_last_metric(factor, tmp_path):
    model, batch = make_model("llama", torch.float32), make_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with Probe(model, tmp_path / "run", optimizer=optimizer, metric="previous", certify=False) as probe:
        for step in range(2):
            with probe.step(step, batch.ids):
                rows = sequence_logps(model, batch)
                probe.pairs(rows, vanishing=False)
                (rows * pulled(batch, factor)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    pushes = load_trace(tmp_path / "run").pushes
    found = set(pushes["pair_id"])
    assert found == {pair for pair in batch.ids if factor == 1.0 or pair != batch.ids[LOST]}
    assert pushes[["own_chosen", "own_rejected"]].notna().all(axis=None)


@pytest.mark.parametrize("how", ["full Gram", "separate", "self-check", "float16"])
def test_where_the_device_stops_anyway_no_pair_is_lost(how):
    half = torch.float16 if how == "float16" else torch.float32
    model, batch = make_model("llama", half), make_batch()
    probe = Probe(model, gram_every=how == "full Gram", separate=how == "separate", certify=how == "self-check")
    with probe.step(0, batch.ids):
        logps = sequence_logps(model, batch)
        probe.pairs(logps, vanishing=False)
        (logps * pulled(batch, 0.0).to(half)).sum().backward()
    probe.close()
    assert probe.rows[LOST]["separate_backward"] and all("grad_inner" in row for row in probe.rows)


def test_a_separate_backward_finds_its_parameters_again(tmp_path):
    """It may take them in another order than the training's, here since that one has small coefficients."""
    model, batch = make_model("gpt2", torch.float32), make_batch()
    with Probe(model, tmp_path / "plain", certify=False) as probe:
        train(probe, model, batch, [torch.ones(2 * batch.pairs)], "sums")
    few = torch.full((2 * batch.pairs,), 1e-8)
    few[LOST] = 0.0
    with Probe(model, tmp_path / "run", certify=False) as probe, probe.step(0, batch.ids):
        rows = sequence_logps(model, batch)
        probe.pairs(rows)
        (rows * few).mean().backward()
    plain, found = (load_trace(tmp_path / name).layers for name in ("plain", "run"))
    assert load_trace(tmp_path / "run").steps["separate_rows"].tolist() == [2] and len(plain) == len(found) > 3
    numbers = ["grad_norm_chosen", "grad_norm_rejected", "grad_inner"]
    np.testing.assert_allclose(found[numbers], plain[numbers], rtol=1e-4, atol=1e-4)
