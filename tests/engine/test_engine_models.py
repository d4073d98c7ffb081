"""Models and uses beyond the families: hand-written modules, shared layers, LoRA, mixtures of experts, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from exactness import error_of
from families import VOCAB, make_batch, make_model
from hand_written import HAND_WRITTEN, MixesRows, Outside
from reference.same_graph import gram_of
from torch import nn

from dyn_probe import (
    BadInput,
    CertificationError,
    PairBatch,
    Probe,
    UnsupportedUse,
    row_gram,
    sequence_logps,
    token_logps,
)
from dyn_probe.engine.kinds import KINDS
from dyn_probe.engine.recording import Recording

pytestmark = pytest.mark.usefixtures("double_everywhere")


@pytest.mark.parametrize("kind", HAND_WRITTEN)
def test_hand_written_models_are_exact(kind):
    assert error_of(kind(), make_batch()) <= 1e-9


def test_every_rule_explains_a_module_of_these_or_of_a_family():
    used = set()
    for model in (make_model("gpt2"), *(kind() for kind in HAND_WRITTEN)):
        with Recording(model) as recording:
            sequence_logps(model, make_batch())
        used |= {claim.kind.name for claim in recording.capture.survey.claims.values()}
    assert used == {row.name for row in KINDS}


@pytest.mark.parametrize("kind", [Outside, MixesRows])
def test_what_cannot_be_explained_is_refused(kind):
    with pytest.raises(UnsupportedUse, match=r"layer.weight|norm"):
        row_gram(kind(), make_batch())


def test_refusal_lists_every_use():
    class Two(Outside):
        def build(self) -> None:
            super().build()
            self.other = nn.Linear(16, 16, bias=False)

        def body(self, x):
            return F.linear(super().body(x), self.other.weight)

    with pytest.raises(UnsupportedUse) as caught:
        row_gram(Two(), make_batch())
    assert "layer.weight" in str(caught.value) and "other.weight" in str(caught.value)


SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.mark.parametrize(
    "config",
    [
        tf.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, experts_implementation="eager"),
        tf.Qwen3MoeConfig(
            **SMALL,
            head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            experts_implementation="eager",
        ),
    ],
    ids=["mixtral", "qwen3_moe"],
)
def test_mixture_of_experts_is_exact_or_refused(config):
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).double().train()
    try:
        error = error_of(model, make_batch())
    except UnsupportedUse as refusal:
        assert "experts" in str(refusal) or "gate" in str(refusal)
    else:
        assert error <= 1e-9


def test_lora_is_exact():
    peft = pytest.importorskip("peft")
    for family in ("gpt2", "llama"):
        targets = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj", "down_proj"]
        settings = peft.LoraConfig(r=3, target_modules=targets, lora_dropout=0.0, fan_in_fan_out=family == "gpt2")
        model = peft.get_peft_model(make_model(family), settings).double()
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn_like(p))
        assert error_of(model, make_batch()) <= 1e-9


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_positions_shared_by_the_whole_batch(family):
    """GPT-2 and OPT read their position table once for all rows when no positions are given."""
    model, batch = make_model(family), make_batch()

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask).logits

    assert error_of(Plain(), batch) <= 1e-9


def test_reference_passes_fire_no_taps():
    model, batch = make_model("llama"), make_batch()
    probe = Probe(model)
    with probe.step(0, batch.ids):
        with torch.no_grad():
            reference = sequence_logps(model, batch)
        logps = sequence_logps(model, batch)
        with torch.no_grad():
            sequence_logps(model, batch)
        probe.pairs(logps, reference=reference)
        logps.mean().backward()
    assert probe.certificate.max_relative_error <= 1e-9


def test_two_forwards_with_gradients_are_refused():
    model, batch = make_model("llama"), make_batch()
    with pytest.raises(BadInput, match="twice"), Probe(model).step(0, batch.ids):
        sequence_logps(model, batch)
        sequence_logps(model, batch)


def test_a_loss_that_goes_around_the_log_probabilities_is_caught():
    model, batch = make_model("llama"), make_batch()
    with pytest.raises(CertificationError, match="separate=True"), Probe(model).step(0, batch.ids) as probe:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        logps = token_logps(logits, batch).sum(1)
        probe.pairs(logps)
        (logps.mean() + logits.square().mean()).backward()


def test_separate_measures_such_a_loss_exactly():
    model, batch = make_model("llama"), make_batch()
    wanted = gram_of(sequence_logps(model, batch), model)
    probe = Probe(model, separate=True)
    with probe.step(0, batch.ids):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        logps = token_logps(logits, batch).sum(1)
        probe.pairs(logps)
        (logps.mean() + logits.square().mean()).backward()
    probe.close()
    assert probe.rows[0]["separate_backward"] and probe.certificate.max_relative_error <= 1e-9
    assert probe.rows[0]["grad_inner"] == pytest.approx(float(wanted[0, batch.pairs]), rel=1e-9)


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e-15])
def test_zero_and_tiny_pulls(factor, reentrant):
    """Hinge losses give a row no pull at all; far past the margin it underflows."""
    model, batch = make_model("llama", torch.float32), make_batch()
    wanted = gram_of(sequence_logps(model, batch), model)
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    probe = Probe(model)
    weights = torch.tensor([1.0, factor, 1.0, 1.0, 1.0, factor])
    with probe.step(0, batch.ids):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        (logps * weights).mean().backward()
    probe.close()
    for i, row in enumerate(probe.rows):
        scale = float((wanted[i, i] * wanted[i + 3, i + 3]).sqrt())
        assert abs(row["grad_inner"] - float(wanted[i, i + 3])) <= 1e-5 * scale
        assert row["grad_norm_chosen"] == pytest.approx(float(wanted[i, i].sqrt()), rel=1e-5)
        assert row["separate_backward"] == (factor in (0.0, 1e-30) and i in (1, 2))


def test_errors_of_use_say_what_to_do():
    model, batch = make_model("gpt2"), make_batch()
    with pytest.raises(BadInput, match=r"loss.backward"), Probe(model).step(0, batch.ids) as probe:
        probe.pairs(sequence_logps(model, batch))
    with pytest.raises(BadInput, match="detached"), Probe(model).step(0, batch.ids) as probe:
        probe.pairs(sequence_logps(model, batch).detach())
    with pytest.raises(BadInput, match="not called"), Probe(model).step(0, batch.ids) as probe:
        probe.pairs(torch.zeros(6, requires_grad=True) * 1)
    with pytest.raises(BadInput, match=r"\[2B\]"), Probe(model).step(0, batch.ids) as probe:
        probe.pairs(sequence_logps(model, batch)[:2])
    with pytest.raises(BadInput, match=r"frozen|trained"):
        row_gram(make_model("gpt2").requires_grad_(False), batch)
    with pytest.raises(BadInput, match="2B"):
        PairBatch(batch.input_ids[:3], batch.attention_mask[:3], batch.response_mask[:3])
