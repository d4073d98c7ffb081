"""The model's own answers: greedy ones equal a plain loop, sampled ones follow the seed."""

from __future__ import annotations

import pytest
import torch
from families import make_model
from mass_samples import records, word_tokenizer
from torch import nn

from dyn_probe.errors import BadInput, UnsupportedUse
from dyn_probe.mass import build_probe_set, encode_probes, with_initial

KIND = "chosen_initial"


def sized(family="gpt2"):
    model = make_model(family, torch.float32, seed=4)
    model.resize_token_embeddings(25)
    return model


def answers(probes):
    return [p.responses.get(KIND) for p in probes.prompts]


def greedy_twin(model, tokenizer, prompt, length):
    """Token ids, one by one, the argmax of a plain forward, until the end of sequence."""
    ids, said = tokenizer(prompt)["input_ids"], []
    mode = model.training
    model.eval()
    while len(said) < length:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + said])).logits[0, -1]
        token = int(logits.argmax())
        if token == tokenizer.eos_token_id:
            break
        said.append(token)
    model.train(mode)
    return said


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_greedy_answers_equal_a_plain_loop(family, batch_size):
    model, tokenizer, probes = sized(family), word_tokenizer(), build_probe_set(records())
    given = with_initial(probes, model, tokenizer, max_new_tokens=5, batch_size=batch_size)
    expected = [greedy_twin(model, tokenizer, p.prompt, 5) for p in probes.prompts]
    heard = [tokenizer(p.prompt + p.responses.get(KIND, ""))["input_ids"] for p in given.prompts]
    prompts = [tokenizer(p.prompt)["input_ids"] for p in given.prompts]
    special = set(tokenizer.all_special_ids)  # not part of the text
    said = [[token for token in new if token not in special] for new in expected]
    assert heard == [prompt + new for prompt, new in zip(prompts, said, strict=True)]
    assert any(said)


def test_an_answer_keeps_the_space_that_parts_it_from_its_prompt():
    model, tokenizer = sized(), word_tokenizer()
    probes = build_probe_set([{**record, "prompt": record["prompt"].removesuffix(" ?")} for record in records()])
    said = answers(with_initial(probes, model, tokenizer, max_new_tokens=3))
    assert any(said)
    assert all(text.startswith(" ") for text in said if text)
    assert not tokenizer.decode(tokenizer(said[0] or "yes")["input_ids"]).startswith(" ")


def test_prompts_too_long_for_the_model_are_listed():
    model, tokenizer, probes = sized(), word_tokenizer(), build_probe_set(records())
    given = with_initial(probes, model, tokenizer, max_new_tokens=61)  # 64 positions
    assert KIND not in given.kinds
    assert {s.reason for s in given.skipped} == {"a prompt of 4 tokens and 61 new ones exceed the model's 64 positions"}


def test_published_generation_settings_are_not_used():
    model, tokenizer, probes = sized(), word_tokenizer(), build_probe_set(records())
    plain = answers(with_initial(probes, model, tokenizer, max_new_tokens=6))
    model.generation_config.update(do_sample=True, top_k=5, repetition_penalty=3.0, max_new_tokens=1)
    assert answers(with_initial(probes, model, tokenizer, max_new_tokens=6)) == plain


def test_sampled_answers_follow_the_seed():
    model, tokenizer, probes = sized(), word_tokenizer(), build_probe_set(records())

    def sampled(seed):
        return answers(with_initial(probes, model, tokenizer, max_new_tokens=8, seed=seed, temperature=2.0))

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


@pytest.mark.parametrize("seed", [None, 3])
def test_model_and_random_state_stay_as_they_were(seed):
    model, tokenizer, probes = sized(), word_tokenizer(), build_probe_set(records())
    model.transformer.h[0].eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    settings, written = model.generation_config, model.generation_config.to_dict()
    with_initial(probes, model, tokenizer, max_new_tokens=2, seed=seed)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert model.generation_config is settings
    assert settings.to_dict() == written


def test_empty_answers_are_listed_and_earlier_ones_go():
    model, tokenizer = sized(), word_tokenizer()
    with torch.no_grad():  # a model that says the end of sequence at once
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.wte.weight[tokenizer.eos_token_id] = 1.0
    probes = build_probe_set(records())
    probes = probes.with_kind(KIND, {p.prompt_id: "old" for p in probes.prompts})
    given = with_initial(probes, model, tokenizer, max_new_tokens=3)
    assert KIND not in given.kinds
    assert [s.reason for s in given.skipped] == ["the model's own answer is empty"] * 6
    assert len(given) == len(probes) - 6


def test_progress_and_settings():
    told, probes = [], build_probe_set(records())
    with_initial(probes, sized(), word_tokenizer(), max_new_tokens=1, batch_size=4, progress=lambda *s: told.append(s))
    assert told == [(4, 6), (6, 6)]
    with pytest.raises(BadInput, match="must be at least 1"):
        with_initial(probes, sized(), word_tokenizer(), max_new_tokens=0)
    with pytest.raises(UnsupportedUse, match=r"Linear has no generate"):
        with_initial(probes, nn.Linear(2, 2), word_tokenizer())
    small = make_model("gpt2", torch.float32)
    small.resize_token_embeddings(10)
    with pytest.raises(BadInput, match="do not match"):
        with_initial(probes, small, word_tokenizer())


def test_only_answers_that_were_cut_are_unfinished():
    model, tokenizer, probes = sized(), word_tokenizer(), build_probe_set(records())
    length = 40
    given = with_initial(probes, model, tokenizer, max_new_tokens=length, seed=0, temperature=3.0)
    ended = [p for p in given.prompts if KIND in p.responses and KIND not in p.unfinished]
    assert ended and len(ended) < len(given.prompts)  # both occur
    tokens = {(one.prompt_id, one.kind): one for one in encode_probes(given, tokenizer).responses}
    for prompt in given.prompts:
        if KIND in prompt.responses:
            last = tokens[prompt.prompt_id, KIND].ids[-1]
            assert (last == tokenizer.eos_token_id) is (prompt in ended)
    again = with_initial(given, model, tokenizer, max_new_tokens=1)
    said = {p.prompt: greedy_twin(model, tokenizer, p.prompt, 1) for p in again.prompts}
    assert all((KIND in p.unfinished) is bool(said[p.prompt]) for p in again.prompts)
