"""Token Grams against one backward per token, and law 2: their sums are the pair's numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from families import FAMILIES, make_batch, make_model
from hand_written import HAND_WRITTEN, OnlyGeneric
from reference.token_gradients import token_gradients
from transformers import LlamaConfig, LlamaForCausalLM

from dyn_probe import BadInput, pair_gradients, token_gram
from dyn_probe.engine import products, tokens
from dyn_probe.engine.kinds import linear
from dyn_probe.engine.parameters import select_parameters

pytestmark = pytest.mark.usefixtures("double_everywhere")


def slow(model, batch, pair, names=None):
    model = copy.deepcopy(model).double().eval()
    rows = (pair, pair + batch.pairs)
    grads = [
        token_gradients(model, batch.input_ids[r], batch.attention_mask[r], batch.response_mask[r], names) for r in rows
    ]
    values = torch.cat(grads)
    return values @ values.T, len(grads[0])


def error_of(found, wanted, n) -> float:
    norms = wanted.diagonal().sqrt()
    got = torch.cat(
        [torch.cat([found.chosen, found.chosen_rejected], 1), torch.cat([found.chosen_rejected.T, found.rejected], 1)]
    )
    return float(((got - wanted).abs() / (norms[:, None] * norms[None])).nan_to_num(float("inf")).max())


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_token_grams_equal_the_slow_twin(family, tie):
    model, batch = make_model(family, tie_word_embeddings=tie), make_batch(side="left")
    found, (wanted, n) = token_gram(model, batch, pair=1, tile=4), slow(model, batch, 1)
    assert error_of(found, wanted, n) <= 1e-9
    assert model.training and found.chosen_rejected.shape == (n, len(wanted) - n)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32(family):
    model, batch = make_model(family, torch.float32), make_batch()
    assert error_of(token_gram(model, batch, pair=0), *slow(model, batch, 0)) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(family):
    model, batch = make_model(family, torch.bfloat16, noise=0.05), make_batch()
    assert error_of(token_gram(model, batch, pair=0), *slow(model, batch, 0)) <= 5e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_law_2_sums_are_the_pairs_numbers(family):
    model, batch = make_model(family), make_batch()
    pairs = pair_gradients(model.eval(), batch)
    for pair in range(batch.pairs):
        heat = token_gram(model, batch, pair, tile=3)
        assert float(heat.chosen.sum()) == pytest.approx(float(pairs.norm_chosen[pair]) ** 2, rel=1e-9)
        assert float(heat.rejected.sum()) == pytest.approx(float(pairs.norm_rejected[pair]) ** 2, rel=1e-9)
        scale = float(pairs.norm_chosen[pair] * pairs.norm_rejected[pair])
        assert abs(float(heat.chosen_rejected.sum()) - float(pairs.inner[pair])) <= 1e-9 * scale


@pytest.mark.parametrize("tile", [1, 5, 64])
@pytest.mark.parametrize("budget", [40_000, 1 << 30])
@pytest.mark.parametrize("tie", [True, False])
def test_tiles_and_passes_do_not_change_the_answer(tile, budget, tie):
    model, batch = make_model("gpt2", tie_word_embeddings=tie), make_batch()
    found = token_gram(model, batch, 2, tile=tile, budget=budget)
    assert error_of(found, *slow(model, batch, 2)) <= 1e-9


def test_blocks_of_one_tile_do_not_change_the_answer():
    model, batch = make_model("gpt2"), make_batch()
    told = []
    found = token_gram(
        model, batch, 2, "wte|1.attn", 4, budget=1, progress=lambda done, total: told.append((done, total))
    )
    assert error_of(found, *slow(model, batch, 2, set(found.parameters))) <= 1e-9
    assert [done for done, _ in told] == list(range(1, told[-1][1] + 1))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("budget", [1, 30_000, 100_000, 1 << 30])
def test_what_stands_at_once_fits_the_budget(family, budget, monkeypatch):
    """Bytes of both sides of every product, against the budget, or two tiles of one parameter where that is more."""
    monkeypatch.setattr(linear, "WIDE", 97)
    model, batch = make_model(family, tie_word_embeddings=False), make_batch()
    add, stood, largest = tokens.add_products, [], []

    def size(part):
        _, factor = part
        return factor.nbytes

    def watched(gram, left, right):
        sides = [left] if left is right else [left, right]
        stood.append(sum(size(part) for side in sides for parts in side.values() for part in parts))
        largest.extend(size(part) for side in sides for parts in side.values() for part in parts)
        add(gram, left, right)

    monkeypatch.setattr(tokens, "add_products", watched)
    token_gram(model, batch, 0, tile=4, budget=budget)
    assert max(stood) <= max(budget, 2 * max(largest))
    assert (len(stood) > 1) == (budget <= 100_000)


def with_output(model):
    """The same model with transformers' kind of output, for the slow twin."""

    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Named(type(model)):
        def forward(self, input_ids, attention_mask=None):
            return Output(super().forward(input_ids))

    twin = Named()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("kind", HAND_WRITTEN)
def test_hand_written_models(kind):
    model, batch = kind(), make_batch()
    assert error_of(token_gram(model, batch, 0, tile=4), *slow(with_output(model), batch, 0)) <= 1e-9


LLAMA_BLOCK = {
    f"model.layers.1.{name}.weight"
    for name in (
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
        "input_layernorm",
        "post_attention_layernorm",
    )
}
SELECTIONS = {
    ("gpt2", True, "head"): {"transformer.wte.weight"},
    ("gpt2", False, "head"): {"lm_head.weight"},
    ("opt", True, "head"): {"model.decoder.embed_tokens.weight"},
    ("opt", False, "head"): {"lm_head.weight"},
    ("phi", False, "head"): {"lm_head.weight", "lm_head.bias"},
    ("llama", True, "head"): {"model.embed_tokens.weight"},
    ("llama", False, "head"): {"lm_head.weight"},
    ("llama", True, "last-block"): LLAMA_BLOCK,
    ("gpt2", True, r"1\.mlp\.c_proj"): {f"transformer.h.1.mlp.c_proj.{part}" for part in ("weight", "bias")},
    ("gpt2", False, "ln_f"): {"transformer.ln_f.weight", "transformer.ln_f.bias"},
}


@pytest.mark.parametrize(("family", "tie", "params"), SELECTIONS)
def test_a_subset_of_the_parameters(family, tie, params):
    wanted = SELECTIONS[family, tie, params]
    model, batch = make_model(family, tie_word_embeddings=tie), make_batch()
    found = token_gram(model, batch, 0, params=params)
    assert set(found.parameters) == wanted
    assert error_of(found, *slow(model, batch, 0, wanted)) <= 1e-9


@pytest.mark.parametrize("params", ["head", "last-block", "all", "lm_head"])
def test_a_selection_of_nothing_is_refused(params):
    model, batch = make_model("llama", tie_word_embeddings=False), make_batch()
    for name, p in model.named_parameters():
        p.requires_grad_(params != "all" and "layers.0.self_attn.q_proj" in name)
    there = "none" if params == "all" else r"model\.layers\.0\.self_attn\.q_proj\.weight"
    with pytest.raises(BadInput, match=f"trained are: {there};"):
        token_gram(model, batch, params=params)


def test_a_head_under_lora():
    peft = pytest.importorskip("peft")
    plain = peft.get_peft_model(make_model("llama"), peft.LoraConfig(r=3, target_modules=["q_proj"]))
    with pytest.raises(BadInput, match="the head is not trained; trained are: base_model"):
        token_gram(plain, make_batch(), params="head")
    adapted = peft.get_peft_model(make_model("llama"), peft.LoraConfig(r=3, target_modules=["lm_head"]))
    names = {f"base_model.model.lm_head.lora_{part}.default.weight" for part in "AB"}
    assert select_parameters(adapted, "head") == names


def test_a_model_that_does_not_name_its_head_is_refused():
    with pytest.raises(BadInput, match=r"OnlyGeneric does not name its head .* write a regular expression"):
        token_gram(OnlyGeneric(), make_batch(), params="head")


@pytest.mark.parametrize("wide", [16, 64])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_wide_layers_are_exact(family, tie, wide, monkeypatch):
    """Wide means many outputs, not "head": with 16 every hidden layer is wide too, with 64 most often the head alone.

    Tiles of one token and of four: a row whose gradient has one live position stands beside rows with several.
    """
    monkeypatch.setattr(linear, "WIDE", wide)
    model, batch = make_model(family, tie_word_embeddings=tie), make_batch()
    for tile in (1, 4):
        assert error_of(token_gram(model, batch, 1, tile=tile), *slow(model, batch, 1)) <= 1e-9


def wide_llama():
    """Two layers whose MLP is as wide as a small vocabulary, unpatched."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=8, intermediate_size=linear.WIDE, num_hidden_layers=2, num_attention_heads=2)
    config = LlamaConfig(vocab_size=97, max_position_embeddings=64, **sizes)
    return LlamaForCausalLM._from_config(config, attn_implementation="eager").double()


def test_a_really_wide_mlp_is_exact():
    model, batch = wide_llama(), make_batch()
    found = token_gram(model, batch, 0)
    assert error_of(found, *slow(model, batch, 0)) <= 1e-9
    pairs = pair_gradients(model.eval(), batch)
    assert float(found.chosen.sum()) == pytest.approx(float(pairs.norm_chosen[0]) ** 2, rel=1e-9)


def test_keeping_one_position_of_a_wide_layer_is_caught(monkeypatch):
    honest = linear.live

    def first_live(inputs, outputs):
        inputs, outputs, _ = honest(inputs, outputs)
        return inputs[:, :1], outputs[:, :1], True

    monkeypatch.setattr(linear, "live", first_live)
    model, batch = wide_llama(), make_batch()
    assert error_of(token_gram(model, batch, 0), *slow(model, batch, 0)) > 1e-4


@pytest.mark.parametrize("kind", HAND_WRITTEN)
def test_wide_layers_of_hand_written_models(kind, monkeypatch):
    monkeypatch.setattr(linear, "WIDE", 16)
    model, batch = kind(), make_batch()
    assert error_of(token_gram(model, batch, 0, tile=4), *slow(with_output(model), batch, 0)) <= 1e-9


def test_lora():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        make_model("llama"), peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"])
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    batch = make_batch()
    assert error_of(token_gram(model, batch, 0), *slow(model, batch, 0)) <= 1e-9


def test_a_wrong_product_is_caught(monkeypatch):
    model, batch = make_model("gpt2"), make_batch()
    honest = products._through
    monkeypatch.setattr(products, "_through", lambda left, middle, right: honest(left, middle.flip(0), right))
    assert error_of(token_gram(model, batch, 0), *slow(model, batch, 0)) > 1e-4


def test_errors():
    model, batch = make_model("gpt2"), make_batch()
    with pytest.raises(BadInput, match="between 0 and 2"):
        token_gram(model, batch, pair=7)
    with pytest.raises(BadInput, match="no trained parameter"):
        token_gram(model, batch, params="nothing_like_this")
    with pytest.raises(BadInput, match="regular expression"):
        token_gram(model, batch, params="(")
