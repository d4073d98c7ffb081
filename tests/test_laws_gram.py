"""The laws of METHODS §2 over every model family, and the checks that show that a wrong rule is caught."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, double_throughout, make_batch, make_model
from test_engine_exactness import record, relative_error, true_gram

from dyn_probe import CertificationError, PairBatch, Probe, pair_gradients, row_gram, sequence_logps
from dyn_probe.gram import linear, table, tied
from dyn_probe.recording import pair_entries


@pytest.fixture(autouse=True)
def really_double():
    with double_throughout():
        yield


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_law_1_gram_gives_the_norm_of_the_loss_gradient(family, tie):
    model, batch = make_model(family, tie_word_embeddings=tie), make_batch()
    found = record(model, batch, full=True)
    norm = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    assert float(found.coefficients @ found.gram @ found.coefficients) == pytest.approx(norm, rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_law_3_inner_products_add_up_over_parameters_and_layers(family):
    model, batch = make_model(family), make_batch()
    found = pair_gradients(model, batch)
    whole = pair_entries(row_gram(model, batch))
    assert set(found.by_parameter) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert torch.allclose(
        torch.stack(list(found.by_layer().values())).sum(0),
        whole,
        rtol=1e-9,
        atol=1e-9 * float(whole.abs().max()),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_law_4_gram_is_symmetric_and_positive_semidefinite(family):
    gram = row_gram(make_model(family), make_batch())
    assert torch.allclose(gram, gram.T, rtol=0, atol=1e-12 * float(gram.abs().max()))
    assert float(torch.linalg.eigvalsh(gram).min()) >= -1e-9 * float(gram.diagonal().max())
    norms = gram.diagonal().sqrt()
    assert bool((gram.abs() <= norms[:, None] * norms[None] * (1 + 1e-9)).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_law_5_neither_batch_nor_padding_nor_order_matters(family):
    model, batch = make_model(family), make_batch()
    whole = pair_entries(row_gram(model, batch))
    alone = torch.cat([pair_entries(row_gram(model, batch.select([i]))) for i in range(batch.pairs)])
    order = [2, 0, 1]
    shuffled = pair_entries(row_gram(model, batch.select(order)))
    left = pair_entries(row_gram(model, make_batch(side="left", extra=5)))
    for other in (alone, left):
        assert torch.allclose(whole, other, rtol=1e-9, atol=1e-9 * float(whole.max()))
    assert torch.allclose(whole[order], shuffled, rtol=1e-9, atol=1e-9 * float(whole.max()))
    assert batch.ids == make_batch(side="left", extra=5).ids


def train(model, batch, probe: Probe | None, steps: int = 3):
    """A short training run; returns losses, final parameters and the random state."""
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        if probe is None:
            logps = sequence_logps(model, batch)
            losses.append(loss_of(logps))
            losses[-1].backward()
        else:
            with probe.step(step, batch.ids):
                logps = sequence_logps(model, batch)
                probe.pairs(logps)
                losses.append(loss_of(logps))
                losses[-1].backward()
        optimizer.step()
    return (
        torch.stack(losses).detach(),
        [p.detach().clone() for p in model.parameters()],
        torch.get_rng_state(),
    )


def loss_of(logps):
    half = len(logps) // 2
    return -F.logsigmoid(0.1 * (logps[:half] - logps[half:])).mean()


@pytest.mark.parametrize("checkpointing", [None, False, True])
@pytest.mark.parametrize("gram_every", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_law_6_recorded_training_is_bitwise_the_same(family, gram_every, checkpointing):
    dropout = {"gpt2": dict(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1), "opt": dict(dropout=0.1)}.get(family, {})
    runs = []
    for recorded in (False, True):
        model = make_model(family, torch.float32, **dropout)
        if checkpointing is not None:
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        runs.append(train(model, make_batch(), Probe(model, gram_every=gram_every) if recorded else None))
        assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    (losses, parameters, state), (losses_on, parameters_on, state_on) = runs
    assert torch.equal(losses, losses_on) and torch.equal(state, state_on)
    assert all(torch.equal(p, q) for p, q in zip(parameters, parameters_on, strict=True))


def test_hooks_leave_after_an_error():
    model, batch = make_model("llama"), make_batch()
    with pytest.raises(KeyboardInterrupt), Probe(model).step(0, batch.ids):
        sequence_logps(model, batch)
        raise KeyboardInterrupt
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# A check must be seen to fail: wrong rules, fed in on purpose.


def test_a_dropped_tied_cross_term_is_caught(monkeypatch):
    model, batch = make_model("gpt2"), make_batch()
    wanted = true_gram(model, batch)
    assert relative_error(row_gram(model, batch), wanted) <= 1e-9
    monkeypatch.setattr(tied, "_added", lambda head, table: (table @ table.T).double())
    assert relative_error(row_gram(model, batch), wanted) > 1e-4
    with pytest.raises(CertificationError, match=r"wte\.weight"):
        certify(model, batch)


def test_a_swapped_conv1d_is_caught(monkeypatch):
    model, batch = make_model("gpt2", tie_word_embeddings=False), make_batch()
    wanted = true_gram(model, batch)

    def swapped(call, saved, grads):
        found = linear.factors(call, saved, grads)
        if "weight" in found and found["weight"].transposed:
            one = found["weight"]
            found["weight"] = replace(one, inputs=one.inputs.flip(1))
        return found

    kinds = tuple(replace(k, factors=swapped) if k.name == "linear" else k for k in table.KINDS)
    monkeypatch.setattr("dyn_probe.gram.api.KINDS", kinds)
    monkeypatch.setattr("dyn_probe.recording.KINDS", kinds)
    assert relative_error(row_gram(model, batch), wanted) > 1e-4
    with pytest.raises(CertificationError, match="c_attn"):
        certify(model, batch)


def test_a_wrong_mask_is_caught():
    model, batch = make_model("llama"), make_batch()
    wanted = true_gram(model, batch)
    shifted = batch.response_mask.clone()
    first = shifted[0].nonzero()[0]
    shifted[0, first - 1] = 1
    wrong = PairBatch(batch.input_ids, batch.attention_mask, shifted)
    assert relative_error(row_gram(model, wrong), wanted) > 1e-4


def test_a_swapped_embedding_row_is_caught(monkeypatch):
    model, batch = make_model("llama", tie_word_embeddings=False), make_batch()
    wanted = true_gram(model, batch)
    from dyn_probe.gram import embedding

    honest = embedding.scattered
    monkeypatch.setattr(
        embedding,
        "scattered",
        lambda lookup, group: honest(replace(lookup, ids=lookup.ids.roll(1, 1)), group),
    )
    assert relative_error(row_gram(model, batch), wanted) > 1e-4


def certify(model, batch) -> None:
    with Probe(model).step(0, batch.ids) as probe:
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        loss_of(logps).backward()
