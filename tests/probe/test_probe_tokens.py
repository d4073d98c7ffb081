"""A loss that sums over tokens itself: the probe is told the log-probabilities of the tokens, with their mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import make_batch, make_model

from dyn_probe import BadInput, Probe, load_trace
from dyn_probe.metric.step_facts import StepFacts
from dyn_probe.pairs import batch_logits, token_logps

pytestmark = pytest.mark.usefixtures("double_everywhere")


def margin_loss(rows):
    half = len(rows) // 2
    return -F.logsigmoid(0.1 * (rows[:half] - rows[half:]))


def record(weights=None, tokens=True, scale=1.0, **options):
    """The rows of one step, and the parameters' gradients."""
    model, batch = make_model("llama"), make_batch(seed=3)
    probe = Probe(model, **options)
    with probe.step(0, pair_ids=batch.ids, learning_rate=1e-3):
        found = token_logps(batch_logits(model, batch), batch)
        weighted = found if weights is None else found * weights(batch)
        rows = weighted.sum(1)
        if tokens:
            probe.pairs(found, mask=batch.response_mask)
        else:
            probe.pairs(rows)
        (margin_loss(rows).mean() * scale).backward()
        probe.complete(reference=rows.detach(), losses=margin_loss(rows).detach(), loss_scale=scale)
    return list(probe.rows), [p.grad for p in model.parameters()]


def second_half_less(batch):
    """ld_alpha-like weights: tokens behind the first three count half."""
    place = batch.response_mask.cumsum(1)
    return torch.where(place > 3, 0.5, 1.0).double()


def test_tokens_give_the_rows_that_their_sums_give():
    by_sums, gradients = record(tokens=False)
    by_tokens, others = record()
    assert not any(row["separate_backward"] for row in by_tokens)
    for one, other in zip(by_sums, by_tokens, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"pair_id"}:
            assert np.allclose(one[name], other[name], rtol=1e-9, atol=1e-12, equal_nan=True), name
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


def test_what_is_told_after_the_backward_stands_in_the_rows():
    rows, _ = record(scale=0.25)
    whole, _ = record()
    assert np.allclose([r["pull_chosen"] for r in rows], [r["pull_chosen"] for r in whole])
    assert all(r["ref_logp_chosen"] == r["logp_chosen"] and r["loss"] > 0 for r in rows)


@pytest.mark.parametrize("gram_every", [0, 1])
def test_tokens_that_are_pulled_differently_are_measured_separately_and_have_no_pull(tmp_path, gram_every):
    even, _ = record()
    rows, _ = record(second_half_less, out=tmp_path / "run", gram_every=gram_every)
    assert all(row["separate_backward"] for row in rows)
    for one, other in zip(even, rows, strict=True):
        for name in ("logp_chosen", "grad_norm_chosen", "grad_norm_rejected", "grad_inner"):
            assert np.isclose(one[name], other[name], rtol=1e-9), name
        assert not {"pull_chosen", "pull_rejected", "case_plain", "predicted_delta_chosen"} & other.keys()


def test_pushes_say_why_they_are_empty(tmp_path):
    model, batch = make_model("llama"), make_batch(seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with Probe(model, tmp_path / "run", optimizer=optimizer, metric_every=1, update=True) as probe:
        with probe.step(0, pair_ids=batch.ids):
            found = token_logps(batch_logits(model, batch), batch)
            probe.pairs(found, mask=batch.response_mask)
            margin_loss((found * second_half_less(batch)).sum(1)).mean().backward()
        optimizer.step()
    trace = load_trace(tmp_path / "run")
    assert trace.pairs["update_delta_chosen"].notna().all() and not len(trace.pushes)
    assert "weights the tokens" in trace.manifest["pushes"]["reason"]


def test_a_violation_stays_noted_where_later_pushes_are_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(StepFacts, "trusted", lambda *_: False)
    model, batch = make_model("llama"), make_batch(seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with Probe(model, tmp_path / "run", optimizer=optimizer, metric_every=1) as probe:
        for step, weights in enumerate((torch.ones(()), second_half_less(batch), torch.ones(()))):
            with probe.step(step, pair_ids=batch.ids):
                found = token_logps(batch_logits(model, batch), batch)
                probe.pairs(found, mask=batch.response_mask)
                margin_loss((found * weights).sum(1)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    trace = load_trace(tmp_path / "run")
    noted = trace.manifest["pushes"]
    assert noted["trusted"] is False and noted["step"] == 0 and "weights the tokens" in noted["reason"]
    assert sorted(set(trace.pushes["step"])) == [0, 2]


def test_a_mask_of_another_shape_is_refused():
    model, batch = make_model("llama"), make_batch(seed=3)
    with pytest.raises(BadInput, match="log-probabilities"), Probe(model).step(0) as probe:
        found = token_logps(batch_logits(model, batch), batch)
        probe.pairs(found, mask=batch.response_mask[:, 1:])
