"""Reweighted gradients and pairwise-normalised steps against plain autograd, one backward per response."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, make_batch, make_model
from hand_written import InPlace, OnlyGeneric, Shared, TopLevelParameter, TransposedTie
from reference.gradients import row_gradients
from reference.normalised import normalised_gradient
from reweighting import coefficients, reweighting_error, worst
from tiny_runs import tiny

from dyn_probe import Probe, sequence_logps
from dyn_probe.data.built_in import built_in_model
from dyn_probe.data.collating import collate
from dyn_probe.objectives import normalised_pulls
from dyn_probe.train import loop
from dyn_probe.train.batches import step_order
from dyn_probe.train.checkpoints import newest_checkpoint
from dyn_probe.train.setup import prepare

HAND_WRITTEN = (OnlyGeneric, TopLevelParameter, Shared, TransposedTie, InPlace)


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
