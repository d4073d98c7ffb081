"""TRL's fused head: log-probabilities without a call of the head, recorded as exactly as those from logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from exactness import take_alone
from families import _ROTARY, VOCAB, make_batch, make_model

from dyn_probe import Probe, UnsupportedUse, pair_gradients, row_gram
from dyn_probe.engine.heads import head_rows
from dyn_probe.engine.recording import Recording

utils = pytest.importorskip("trl.trainer.utils", reason="the fused head is TRL's")

HEADS = {
    "untied": lambda: make_model("llama"),
    "tied": lambda: make_model("gpt2"),
    "tied llama": lambda: built(tf.LlamaConfig(**_ROTARY, tie_word_embeddings=True)),
    "bias": lambda: make_model("phi"),
    "capped": lambda: built(tf.Gemma2Config(**_ROTARY, head_dim=8, sliding_window=6, final_logit_softcapping=0.7)),
    "divided": lambda: built(tf.GraniteConfig(**_ROTARY, logits_scaling=3.0)),
}


def built(config):
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def model_of(head):
    model = HEADS[head]().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return model.train()


def fused_logps(model, batch):
    """``[2B, L - 1]`` and its mask, as ``DPOTrainer`` calls the model."""
    labels = batch.input_ids.masked_fill(batch.response_mask == 0, -100)
    found = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels, use_cache=False,
        fused_lm_head=True,
    ).log_probs  # fmt: skip
    return found, batch.response_mask[:, 1:]


def rows_of(model, batch):
    tokens, _ = fused_logps(model, batch)
    return tokens.sum(1)


def loss_of(rows):
    half = len(rows) // 2
    return -F.logsigmoid(0.1 * (rows[:half] - rows[half:])).mean()


@pytest.fixture(autouse=True)
def narrow_slices(monkeypatch):
    """The vocabulary in several parts."""
    monkeypatch.setattr(head_rows, "SLICE", 900)


def close(one, other, room=2e-4):
    return float((one - other).abs().max()) <= room * float(other.abs().max())


@pytest.mark.parametrize("alone", [False, True], ids=["", "use by use"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_products_equal_those_from_logits(head, full, alone, monkeypatch):
    if alone:  # as the uses of a large model are
        take_alone(monkeypatch)
    model, batch = model_of(head), make_batch(seed=5)
    expected = row_gram(model, batch) if full else pair_gradients(model, batch).totals
    with Recording(model, full) as recording:
        tokens, mask = fused_logps(model, batch)
        recording.watch(tokens, mask)
        loss_of(tokens.sum(1)).backward()
        products = recording.result()
    found = products.gram if full else products.entries.sum(0)
    assert not products.separate.any()
    assert close(found, expected)


@pytest.mark.parametrize("known", [False, True], ids=["", "normaliser known"])
@pytest.mark.parametrize("head", HEADS)
def test_halves_of_the_heads_rows_add_up(head, known):
    """Each response's gradient of the head, by a backward of its own, against the sums over half of the rows."""
    model, batch = model_of(head), make_batch(seed=5)
    weight = model.get_output_embeddings().weight
    rows = rows_of(model, batch)
    wanted = [torch.autograd.grad(row, weight, retain_graph=True)[0] for row in rows]
    with Recording(model, hold=True) as recording:
        tokens, mask = fused_logps(model, batch)
        recording.watch(tokens, mask)
        loss_of(tokens.sum(1)).backward()
        recording.result()
        held = recording.held()
    name = next(name for name, parameter in model.named_parameters() if parameter is weight)
    heads = [one for factors, _ in held.parts for one in factors[name] if one.form == "head"]
    assert len(heads) == 1 and heads[0].normaliser is not None
    if not known:
        heads[0].normaliser = None
    coefficients = torch.linspace(-1.0, 2.0, len(wanted), dtype=torch.float64)
    half = batch.pairs
    for some in (slice(0, half), slice(half, 2 * half)):
        found = held.weighted(name, coefficients, weight.shape, some)
        assert close(found, sum(c * g for c, g in zip(coefficients[some].float(), wanted[some], strict=True)))


@pytest.mark.parametrize("head", ["untied", "tied"])
def test_pushes_through_the_head_add_up_to_the_step(head):
    """Along the optimizer's step, in its metric, and summed: every operation of the head's factor."""
    model, batch = model_of(head), make_batch(seed=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    probe = Probe(model, optimizer=optimizer, metric_every=1, gram_every=1, update=True, split_momentum=True)
    for step in range(2):
        optimizer.zero_grad()
        with probe.step(step, pair_ids=batch.ids):
            tokens, mask = fused_logps(model, batch)
            probe.pairs(tokens, mask=mask)
            loss_of(tokens.sum(1)).backward()
        before = rows_of(model, batch).detach()
        optimizer.step()
        facts = probe._rows.step(step)
        assert facts["law7_error"] < 1e-3 and facts["other_terms"] < 1e-5 and facts["law1_error"] < 1e-4
        moved = torch.tensor([row["update_delta_chosen"] for row in probe.fresh])
        after = rows_of(model, batch).detach()
        assert close(moved, (after - before)[: batch.pairs], room=0.2)


def test_training_is_bitwise_the_same():
    gradients = []
    for recorded in (True, False):
        model, batch = model_of("tied"), make_batch(seed=5)
        with Probe(model, every=1 if recorded else 7).step(0 if recorded else 1) as probe:
            tokens, mask = fused_logps(model, batch)
            probe.pairs(tokens, mask=mask)
            loss_of(tokens.sum(1)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_autocast_inside_the_forward():
    """As accelerate enters it: around the model's own forward, off where the model is called."""
    model, batch = model_of("untied"), make_batch(seed=5)
    forward = model.forward

    def cast(*args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16):
            return forward(*args, **kwargs)

    model.forward = cast
    probe = Probe(model)
    with probe.step(0, pair_ids=batch.ids):
        tokens, mask = fused_logps(model, batch)
        probe.pairs(tokens, mask=mask)
        loss_of(tokens.sum(1)).backward()
    assert probe.certificate is not None and probe.certificate.max_relative_error < 1e-2


def test_a_changed_head_is_refused_by_name():
    model, batch = model_of("untied"), make_batch(seed=5)
    model.config.logit_scale = 2.0
    with (
        pytest.raises(UnsupportedUse, match=r"LlamaForCausalLM.*use_liger_kernel=False"),
        Recording(model) as recording,
    ):
        tokens, mask = fused_logps(model, batch)
        recording.watch(tokens, mask)


def test_logits_are_never_whole(monkeypatch):
    sizes = []
    real = head_rows.HeadMath.logits
    monkeypatch.setattr(
        head_rows.HeadMath, "logits", lambda *args: sizes.append(len(range(VOCAB)[args[2]])) or real(*args)
    )
    model, batch = model_of("untied"), make_batch(seed=5)
    with Recording(model) as recording:
        tokens, mask = fused_logps(model, batch)
        recording.watch(tokens, mask)
        loss_of(tokens.sum(1)).backward()
        recording.result()
    assert sizes and max(sizes) < VOCAB


@pytest.fixture
def rounded_products():
    """As ``TrainingArguments(tf32=True)`` sets it."""
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has one way to say it")
    torch.backends.fp32_precision = "tf32"
    yield
    torch.backends.fp32_precision = "none"


def entries_of_a_step(monkeypatch, cast=False):
    """Entries of the vocabulary whose logits are made again in a recorded step, the first one apart: that compares with
    what came out, and with plain autograd."""
    entries = []
    real = head_rows.HeadMath.logits
    monkeypatch.setattr(
        head_rows.HeadMath, "logits", lambda *args: entries.append(len(range(VOCAB)[args[2]])) or real(*args)
    )
    model, batch = model_of("untied"), make_batch(seed=5)
    probe = Probe(model)
    for step in range(2):
        entries.clear()
        with probe.step(step, pair_ids=batch.ids), torch.autocast("cpu", torch.bfloat16, enabled=cast):
            tokens, mask = fused_logps(model, batch)
            probe.pairs(tokens, mask=mask)
            loss_of(tokens.sum(1)).backward()
    return sum(entries)


@pytest.mark.parametrize(("cast", "times"), [(False, 1), (True, 2)])
def test_logits_are_made_again_once_where_the_normaliser_can_be_read_off(cast, times, monkeypatch):
    assert entries_of_a_step(monkeypatch, cast) == times * VOCAB


def test_where_products_are_rounded_the_normaliser_is_made_again(rounded_products, monkeypatch):
    """Probabilities have to add up to 1."""
    assert entries_of_a_step(monkeypatch) == 2 * VOCAB


def test_log_probabilities_may_be_changed_in_place():
    model, batch = model_of("untied"), make_batch(seed=5)
    expected = pair_gradients(model, batch).totals
    with Recording(model) as recording:
        tokens, mask = fused_logps(model, batch)
        recording.watch(tokens, mask)
        loss = loss_of(tokens.sum(1))
        tokens.detach().fill_(7.0)
        loss.backward()
        products = recording.result()
    found = products.entries.sum(0)
    assert close(found, expected, room=2e-6)
