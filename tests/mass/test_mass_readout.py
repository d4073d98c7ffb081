"""Logits by chunks equal a plain forward's for every family, and the model is only looked at."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers as tf
from families import FAMILIES, VOCAB, double_throughout, make_model
from torch import nn

from dyn_probe.errors import BadInput, UnsupportedUse
from dyn_probe.mass.observed_model import observing, unwrapped
from dyn_probe.mass.readout import Readout

_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
AFTER_THE_HEAD = {
    "gemma2": {"final_logit_softcapping": 0.3},
    "falcon": {"alibi": True},
}
"""Settings that make a family do more: cap its logits, or place positions by a bias."""

MORE = {
    "cohere": lambda: tf.CohereConfig(**_SMALL, logit_scale=0.25),
    "granite": lambda: tf.GraniteConfig(**_SMALL, logits_scaling=8.0),
    "gemma3": lambda: tf.Gemma3TextConfig(**_SMALL, head_dim=8, num_key_value_heads=2),
    "gptj": lambda: tf.GPTJConfig(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
    "mixtral": lambda: tf.MixtralConfig(**_SMALL, num_key_value_heads=2, num_local_experts=4),
    "mpt": lambda: tf.MptConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
}


def built(family, dtype=torch.float64):
    """A random model of the family, in train mode."""
    if family in FAMILIES:
        return make_model(family, dtype, **AFTER_THE_HEAD.get(family, {}))
    torch.manual_seed(0)
    config = MORE[family]()
    config._experts_implementation = "eager"  # the grouped product knows no float64
    return tf.AutoModelForCausalLM.from_config(config).to(dtype).train()


def rows():
    """Three rows of unequal length, padded on the right: ids, mask, wanted positions."""
    ids = torch.randint(0, VOCAB, (3, 11), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(11) < torch.tensor([[11], [6], [9]])).long()
    wanted = (mask.bool()) & (torch.arange(11) >= torch.tensor([[3], [1], [7]]))
    return ids, mask, wanted


def read(readout, ids, mask, wanted):
    """(rows, logits) of all chunks joined, and the chunks' sizes."""
    with observing(readout.model):
        parts = list(readout.logits(ids, mask, wanted))
    return torch.cat([r for r, _ in parts]), torch.cat([z for _, z in parts]), [len(r) for r, _ in parts]


def plain(model, ids, mask):
    """Logits of an ordinary call in evaluation mode, and the model's mode put back."""
    mode = model.training
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, attention_mask=mask).logits
    model.train(mode)
    return logits


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_chunks_equal_a_plain_forward(family):
    ids, mask, wanted = rows()
    with double_throughout(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the slow route would warn
        model = built(family)
        readout = Readout(model, chunk=4)
        got_rows, logits, sizes = read(readout, ids, mask, wanted)
        expected = plain(model, ids, mask)[wanted]
    assert torch.equal(got_rows, wanted.nonzero()[:, 0])
    assert sizes == [4, 4, 4, 3]
    assert torch.allclose(logits, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_dtypes_stay_within_their_rounding(family, dtype):
    ids, mask, wanted = rows()
    model = built(family, dtype)
    _, logits, _ = read(Readout(model, chunk=4), ids, mask, wanted)
    expected = plain(model, ids, mask)[wanted]
    allowed = {torch.float32: 1e-6, torch.bfloat16: 8e-3}[dtype] * float(expected.abs().max())
    assert logits.dtype == dtype
    assert float((logits - expected).abs().max()) <= allowed


def test_softcapping_is_part_of_what_is_read():
    """The check above can see a head that stops at its matrix product."""
    ids, mask, wanted = rows()
    model = built("gemma2")
    _, logits, _ = read(Readout(model), ids, mask, wanted)
    with torch.no_grad():
        hidden = model.eval().model(input_ids=ids, attention_mask=mask).last_hidden_state[wanted]
        assert float((model.lm_head(hidden) - logits).abs().max()) > 0.1


def test_no_table_exceeds_one_chunk():
    ids, mask, wanted = rows()
    model, sizes = built("llama"), []
    readout = Readout(model, chunk=2)
    model.lm_head.register_forward_hook(lambda _m, _i, output: sizes.append(output.numel() // VOCAB))
    read(readout, ids, mask, wanted)
    assert max(sizes) == len(ids)  # one position per row while the base model runs
    assert sizes[1:] == [2] * 7 + [1]


def snapshot(model):
    """Everything an observer may not change."""
    return {
        "modes": [m.training for m in model.modules()],
        "modules": [id(m) for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "grads": [p.grad for p in model.parameters()],
        "random": torch.get_rng_state().tolist(),
    }


def test_the_model_is_only_looked_at():
    ids, mask, wanted = rows()
    model = built("gpt2")
    model.transformer.h[1].eval()
    calls, weights = [], copy.deepcopy(model.state_dict())
    before = snapshot(model)
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    read(Readout(model), ids, mask, wanted)
    handle.remove()
    assert snapshot(model) == before
    assert not calls
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_an_interrupted_reading_lets_go():
    ids, mask, wanted = rows()
    model = built("gpt2")
    readout = Readout(model, chunk=1)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt), observing(model):
        for _ in readout.logits(ids, mask, wanted):
            raise KeyboardInterrupt
    assert snapshot(model) == before
    assert readout.relayed[1].kept.output is None  # the hidden states are let go


class Bare(nn.Module):
    """A model that knows nothing of Hugging Face: ids and mask in, logits out."""

    def __init__(self):
        super().__init__()
        self.inner = make_model("gpt2")
        self.config = self.inner.config

    def forward(self, input_ids, attention_mask):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask).logits


class Mixing(tf.GPT2LMHeadModel):
    """A head whose logits depend on the neighbouring position: it cannot be read by itself."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + output.logits.roll(1, 1)
        return output


def mixing():
    torch.manual_seed(0)
    return Mixing(FAMILIES["gpt2"]()).double()


@pytest.mark.parametrize(("model", "why"), [(Bare, "no base model"), (mixing, "different logits")])
def test_a_model_that_cannot_be_split_is_read_row_by_row_and_says_so(model, why):
    ids, mask, wanted = rows()
    model = model()
    with pytest.warns(UserWarning, match=f"row by row.*{why}"):
        readout = Readout(model, chunk=2)
    got_rows, logits, sizes = read(readout, ids, mask, wanted)
    with torch.no_grad():
        each = [
            model.eval()(input_ids=i[None, :n], attention_mask=m[None, :n])
            for i, m, n in zip(ids, mask, [11, 6, 9], strict=True)
        ]
    tables = [e if isinstance(e, torch.Tensor) else e.logits for e in each]
    expected = torch.cat([table[0][w[: table.shape[1]]] for table, w in zip(tables, wanted, strict=True)])
    assert torch.equal(got_rows, wanted.nonzero()[:, 0])
    assert max(sizes) == 2
    assert torch.equal(logits, expected)


def test_a_forward_set_on_the_instance_is_followed():
    """Mixed precision as accelerate prepares it: chunks see the same autocast as a plain call."""
    from accelerate import Accelerator

    ids, mask, wanted = rows()
    model = built("llama", torch.float32)
    exact = plain(model, ids, mask)[wanted]
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, logits, _ = read(Readout(prepared, chunk=4), ids, mask, wanted)
    expected = plain(prepared, ids, mask)[wanted]
    assert float((expected - exact).abs().max()) > 1e-4
    assert float((logits - expected).abs().max()) <= 8e-3 * float(expected.abs().max())


def test_wrappers_are_seen_through():
    peft = pytest.importorskip("peft")
    model = built("llama", torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    ids, mask, wanted = rows()
    _, logits, _ = read(Readout(nn.DataParallel(adapted)), ids, mask, wanted)
    assert torch.allclose(logits, plain(adapted, ids, mask)[wanted], atol=1e-5)
    with adapted.disable_adapter():
        assert not torch.allclose(logits, plain(adapted, ids, mask)[wanted], atol=1e-3)


def test_models_that_cannot_be_measured_are_refused():
    peft = pytest.importorskip("peft")
    prompted = peft.get_peft_model(
        built("gpt2", torch.float32), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    with pytest.raises(UnsupportedUse, match="learned prompts"):
        unwrapped(prompted)
    encoder = tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=VOCAB, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    )
    with pytest.raises(UnsupportedUse, match="encoder-decoder"):
        Readout(encoder)
    with pytest.raises(UnsupportedUse, match="how large its vocabulary is"):
        Readout(nn.Linear(2, 2))
    with pytest.raises(BadInput, match="at least 1"):
        Readout(built("gpt2"), chunk=0)
