"""Autocast is where the modules run: entered around the forward, inside it, or for a part of the model."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from exactness import relative_error, true_gram
from families import FAMILIES, make_batch, make_model
from hand_written import Base, OnlyGeneric
from reference.same_graph import gram_of

from dyn_probe import CertificationError, Probe, sequence_logps, token_gram, token_logps
from dyn_probe.engine.certificate import TOLERANCES
from dyn_probe.engine.recording import Recording


def inside(model, dtype=torch.bfloat16):
    """The forward in autocast, as accelerate's ``prepare`` does it."""
    model.forward = torch.autocast("cpu", dtype)(model.forward)
    return model


def prepared(model):
    from accelerate import Accelerator

    return Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)


def in_one_block(model):
    model.model.layers[1].forward = torch.autocast("cpu", torch.bfloat16)(model.model.layers[1].forward)
    return model


def recorded(model, batch, around=None):
    probe = Probe(model, gram_every=1)
    with probe.step(0, batch.ids):
        with torch.autocast("cpu", around or torch.bfloat16, enabled=around is not None):
            logps = sequence_logps(model, batch)
        probe.pairs(logps)
        logps.mean().backward()
    return probe


def small(family):
    return make_model(family, torch.float32, noise=0.05, tie_word_embeddings=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_that_enters_autocast_itself_is_certified_like_one_inside_it(family):
    batch = make_batch()
    own, around = recorded(inside(small(family)), batch), recorded(small(family), batch, torch.bfloat16)
    assert own.certificate.tolerance == around.certificate.tolerance == TOLERANCES[torch.bfloat16]
    for column in ("grad_inner", "grad_norm_chosen", "grad_norm_rejected"):
        assert [row[column] for row in own.fresh] == [row[column] for row in around.fresh]


@pytest.mark.parametrize("wrap", [prepared, in_one_block])
def test_other_ways_into_autocast(wrap):
    model, batch = small("llama"), make_batch()
    wanted = true_gram(model, batch)
    probe = recorded(wrap(model), batch)
    assert probe.certificate.tolerance == TOLERANCES[torch.bfloat16] and not probe.certificate.wrong
    for i, row in enumerate(probe.fresh):
        assert abs(row["grad_inner"] - wanted[i, i + 3]) <= 2e-2 * (wanted[i, i] * wanted[i + 3, i + 3]).sqrt()


def test_without_autocast_the_tolerance_stays_that_of_float32():
    assert recorded(small("llama"), make_batch()).certificate.tolerance == TOLERANCES[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hand_written_modules_are_run_again_in_the_type_of_the_forward(dtype):
    model, batch = inside(OnlyGeneric().to(torch.float32), dtype), make_batch()
    with Recording(model, full=True) as recording:
        logps = sequence_logps(model, batch)
        recording.watch(logps)
        with recording.quiet():
            wanted = gram_of(logps, model)
        logps.sum().backward()
        error = relative_error(recording.result().gram, wanted)
    assert error <= (1e-3 if dtype == torch.float16 else 1e-2)


@pytest.mark.parametrize("enter", [False, True], ids=["around", "inside"])
def test_a_table_for_the_whole_batch_is_checked_in_the_arithmetic_of_the_forward(enter):
    """GPT-2 without position ids reads its positions once; the check runs wherever ``probe.pairs`` stands."""
    model, batch = small("gpt2"), make_batch()
    model = inside(model) if enter else model
    with Probe(model).step(0, batch.ids) as probe:
        with torch.autocast("cpu", torch.bfloat16, enabled=not enter):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        logps = token_logps(logits, batch).sum(1)
        probe.pairs(logps)
        logps.mean().backward()
    assert len(probe.fresh) == 3 and not probe.certificate.wrong


@pytest.mark.parametrize("around", [None, torch.bfloat16, torch.float16])
def test_the_realised_change_is_evaluated_in_the_arithmetic_of_the_forward(around):
    """Nothing moves: what differs is arithmetic."""
    model, batch = small("llama"), make_batch()
    probe = recorded(model, batch, around)
    probe.after_update(batch)
    assert [row[f"realised_delta_{side}"] for side in ("chosen", "rejected") for row in probe.fresh] == [0.0] * 6


def test_a_wrong_rule_is_still_caught_inside_autocast():
    class Around(Base):
        def forward(self, input_ids, attention_mask=None):
            self.seen = super().forward(input_ids)
            return self.seen

    model, batch = inside(Around().to(torch.float32)), make_batch()
    with pytest.raises(CertificationError, match="5e-02"), Probe(model).step(0, batch.ids) as probe:
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        (logps.mean() + model.seen.float().square().sum()).backward()


def trained(family, around_step, around_optimizer):
    """Two steps of which the forward runs in autocast; the rest of the loop as told. Every number of the two steps."""
    model, batch = make_model(family, torch.float32), make_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probe = Probe(model, optimizer=optimizer, gram_every=1, metric_every=1, split_momentum=True)
    seen = []
    for step in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=around_step), probe.step(step, batch.ids):
            with torch.autocast("cpu", torch.bfloat16):
                logps = sequence_logps(model, batch)
            probe.pairs(logps)
            logps.mean().backward()
        with torch.autocast("cpu", torch.bfloat16, enabled=around_optimizer):
            optimizer.step()
        optimizer.zero_grad()
        seen += [dict(row) for row in probe.rows][-batch.pairs :]
    return seen


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(("around_step", "around_optimizer"), [(True, False), (False, True), (True, True)])
def test_a_loop_in_autocast_to_its_end_has_the_same_numbers(family, around_step, around_optimizer):
    """Products are made in their factors' types, whatever the loop keeps on around them."""
    wanted, got = trained(family, False, False), trained(family, around_step, around_optimizer)
    assert len(got) == len(wanted) == 6 and "update_delta_chosen" in got[0]
    pd.testing.assert_frame_equal(pd.DataFrame(got), pd.DataFrame(wanted), check_exact=True)


def test_token_grams_in_autocast_have_the_same_numbers():
    model, batch = inside(make_model("llama", torch.float32)), make_batch(pairs=1)
    wanted = token_gram(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        got = token_gram(model, batch)
    for name in ("chosen", "rejected", "chosen_rejected"):
        assert torch.equal(getattr(got, name), getattr(wanted, name))
