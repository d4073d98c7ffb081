"""Reweighted gradients and pairwise-normalised steps against plain autograd, one backward per response."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from families import FAMILIES, make_batch, make_model
from hand_written import HAND_WRITTEN
from reference.gradients import row_gradients
from reference.normalised import normalised_gradient
from reweighting import coefficients, reweighting_error, worst
from tiny_runs import run, tiny, uneven

from dyn_probe import Probe, sequence_logps
from dyn_probe.data.built_in import built_in_model
from dyn_probe.data.collating import collate
from dyn_probe.errors import BadInput
from dyn_probe.objectives import normalised_pulls
from dyn_probe.train import loop
from dyn_probe.train.batches import step_order
from dyn_probe.train.checkpoints import newest_checkpoint
from dyn_probe.train.setup import prepare

pytestmark = pytest.mark.usefixtures("double_everywhere")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_reweighted_gradients_are_autograds(family, tied):
    model = make_model(family, tie_word_embeddings=tied)
    assert reweighting_error(model, make_batch(), coefficients(6)) < 1e-9


@pytest.mark.parametrize("kind", HAND_WRITTEN)
def test_reweighted_gradients_of_hand_written_models(kind):
    assert reweighting_error(kind(), make_batch(), coefficients(6)) < 1e-9


def test_reweighted_gradients_of_lora():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(make_model("llama"), config).double().train()
    assert reweighting_error(model, make_batch(), coefficients(6)) < 1e-9


def test_a_wrong_reweighting_is_seen():
    assert reweighting_error(make_model("gpt2"), make_batch(), coefficients(6), factor=1.001) > 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma2"])
def test_a_normalised_step_is_the_slow_twins(family):
    model, batch = make_model(family), make_batch()
    gradients = row_gradients(model, batch.input_ids, batch.attention_mask, batch.response_mask)
    d_w, d_l = torch.tensor([0.1, 0.2, 0.05]).double(), torch.tensor([0.1, 0.05, 0.3]).double()
    with Probe(model).step(0, batch.ids, measure=True) as probe:
        norms = probe.measure(sequence_logps(model, batch), lengths=batch.lengths)
        new = normalised_pulls(d_w, d_l, *norms)
        probe.backward(torch.cat([-new.chosen, new.rejected]) / batch.pairs)
    assert worst(model, normalised_gradient(gradients, d_w.tolist(), d_l.tolist())) < 1e-9
    assert worst(model, normalised_gradient(gradients, d_l.tolist(), d_w.flip(0).tolist())) > 1e-3


def scaled_by(gradients, metric):
    """Rows times √P, so that plain norms are those in the metric."""
    return {n: g * metric[n].double().flatten().sqrt() for n, g in gradients.items()}


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma2"])
def test_norms_in_the_metric_of_the_last_step_are_the_slow_twins(family, kind):
    """P is written out from the optimizer's state; before the first step there is none, and under SGD it is 1."""
    model, batch = make_model(family), make_batch()
    optimizer = kind(model.parameters(), lr=1e-3)
    with Probe(model, optimizer=optimizer) as probe:
        for step in range(3):
            if step:
                gradients = row_gradients(model, batch.input_ids, batch.attention_mask, batch.response_mask)
                states = {n: optimizer.state[p] for n, p in model.named_parameters()}
            with probe.step(step, batch.ids, measure=True):
                logps = sequence_logps(model, batch)
                probe.measure(logps, lengths=batch.lengths)
                found = probe.metric_norms(logps)
                if step == 0 or kind is torch.optim.SGD:
                    assert found is None
                else:
                    corrected = 0.999**step if kind is torch.optim.AdamW else 0.0
                    name = "exp_avg_sq" if kind is torch.optim.AdamW else "square_avg"
                    metric = {n: 1 / ((s[name] / (1 - corrected)).sqrt() + 1e-8) for n, s in states.items()}
                    squares = sum((g**2).sum(1) for g in scaled_by(gradients, metric).values())
                    torch.testing.assert_close(torch.cat(found), squares.sqrt(), rtol=1e-9, atol=0)
                probe.backward(torch.linspace(-1, 1, 6, dtype=torch.float64))
            optimizer.step()
            optimizer.zero_grad()


def test_the_metric_is_asked_for_where_it_is_known():
    model, batch = make_model("llama"), make_batch()
    with (
        pytest.raises(BadInput, match="optimizer=optimizer"),
        Probe(model).step(0, measure=True) as probe,
    ):
        logps = sequence_logps(model, batch)
        probe.measure(logps)
        probe.metric_norms(logps)
    with pytest.raises(BadInput, match=r"between probe\.measure and probe\.backward"):
        Probe(model, optimizer=torch.optim.SGD(model.parameters())).metric_norms(logps)


def in_metric(pair) -> tuple[float, float]:
    """d_w/d_l of a recorded pair, and that of the plain form."""
    return pair.pull_chosen / pair.pull_rejected, pair.grad_norm_rejected / pair.grad_norm_chosen


def test_the_loop_normalises_in_the_optimizers_metric(tmp_path):
    """The pushes of the metric that was applied are nearly balanced within a pair; by plain norms they are not."""
    options = dict(
        data=uneven(tmp_path), steps=6, optimizer="rmsprop", lr=1e-4, metric_every=1, gram_every=1, realised=False
    )
    plain = run(tmp_path / "plain", shaping=("pairwise-normalised",), **options)
    own = run(tmp_path / "own", shaping=("pairwise-normalised:metric=optimizer",), **options)
    first = own.pairs[own.pairs.step == 0]
    assert all(ratio == pytest.approx(norms, rel=1e-5) for ratio, norms in map(in_metric, first.itertuples()))
    later = [in_metric(pair) for pair in own.pairs[own.pairs.step > 0].itertuples()]
    assert max(abs(math.log(ratio / norms)) for ratio, norms in later) > 0.02
    unequal = {}
    for name, trace in (("plain", plain), ("own", own)):
        grams = trace.table("grams").set_index("step")
        found = []
        for step, row in grams[grams.index > 2].iterrows():
            pairs = trace.pairs[trace.pairs.step == step]
            k = np.array(row["gram_metric"]).reshape(2 * len(pairs), -1)
            n = len(pairs)
            ratios = pairs["pull_chosen"].to_numpy() / pairs["pull_rejected"].to_numpy()
            centres = np.sqrt(np.diag(k)[n:] / np.diag(k)[:n])
            found += np.abs(np.log(ratios / centres)).tolist()
        unequal[name] = float(np.median(found))
    assert unequal["own"] < unequal["plain"] / 4
    product = own.pairs["pull_chosen"] * own.pairs["pull_rejected"]
    norms = own.pairs["grad_norm_chosen"] * own.pairs["grad_norm_rejected"]
    assert (product * norms < 0.05**2 * 1.2).all() and (product > 0).all()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_of_the_loop_is_the_slow_twins(accumulation, tmp_path):
    """At the first step policy and reference agree, so DPO's pulls are β/2."""
    config = tiny(
        tmp_path / "run", shaping=("pairwise-normalised",), dtype="float64", optimizer="sgd", steps=1, lr=0.5,
        batch_size=4 // accumulation, gradient_accumulation=accumulation, checkpoint_every=1, max_grad_norm=0.0,
    )  # fmt: skip
    setup = prepare(config)
    loop.record(config, progress=False)
    pairs = [setup.pairs[i] for i in step_order(len(setup.pairs), 4, 0, config.seed)]
    batch, model = collate(pairs), built_in_model(config.seed).double()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    gradients = row_gradients(model, batch.input_ids, batch.attention_mask, batch.response_mask)
    wanted = normalised_gradient(gradients, [0.05] * 4, [0.05] * 4)
    after = newest_checkpoint(tmp_path / "run")["model"]
    scale = max(float(g.abs().max()) for g in wanted.values())
    for name, start in before.items():
        moved = (start - after[name]).flatten() / 0.5
        assert float((moved - wanted[name]).abs().max()) < 1e-9 * scale
