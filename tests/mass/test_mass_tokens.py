"""Where a response begins, what ends it, and whether tokenizer and model fit."""

from __future__ import annotations

import warnings

import pytest
import torch
from families import make_model
from mass_samples import WORDS, word_tokenizer

from dyn_probe.errors import BadInput
from dyn_probe.mass import ProbePrompt, ProbeSet, check_vocabulary, encode_probes


def one(prompt, response):
    return ProbeSet((ProbePrompt(prompt, {"chosen": response}, "here:1"),))


def pieces(encoded, tokenizer):
    """(prompt tokens, response tokens) as strings."""
    (response,) = encoded.responses
    tokens = tokenizer.convert_ids_to_tokens(list(response.ids))
    return tokens[: response.start], tokens[response.start :]


def test_a_response_follows_its_prompt_and_ends_with_the_end_of_sequence():
    tokenizer = word_tokenizer()
    encoded = encode_probes(one("the cat ?", " yes it was"), tokenizer)
    assert pieces(encoded, tokenizer) == (["the", "cat", "?"], ["yes", "it", "was", "</s>"])
    bare = encode_probes(one("the cat ?", " yes it was"), tokenizer, append_eos=False)
    assert pieces(bare, tokenizer)[1] == ["yes", "it", "was"]


def test_a_token_that_spans_the_boundary_belongs_to_the_response():
    tokenizer = word_tokenizer([*WORDS, "dogcat"])
    encoded = encode_probes(one("the dog", "cat sat"), tokenizer)
    assert pieces(encoded, tokenizer) == (["the"], ["dogcat", "sat", "</s>"])


class Ending:
    """A tokenizer that ends every text with the end-of-sequence token by itself."""

    eos_token_id = 1

    def __call__(self, text):
        return {"input_ids": [*(10 + len(word) for word in text.split()), 1]}


def test_the_end_of_sequence_is_not_doubled():
    (response,) = encode_probes(one("a bb", " ccc"), Ending()).responses
    assert response.ids == (11, 12, 13, 1)
    assert response.start == 2


@pytest.mark.parametrize(
    ("prompt", "response", "why"),
    [("dog", "cat", "there is no token before the response"), ("the cat", " ", "adds no token")],
)
def test_responses_that_cannot_be_placed_are_reported(prompt, response, why):
    tokenizer = word_tokenizer([*WORDS, "dogcat"])
    with pytest.raises(BadInput, match=rf"here:1 \[chosen\]: .*{why}"):
        encode_probes(one(prompt, response), tokenizer, append_eos=False)


def sized(rows):
    model = make_model("gpt2", torch.float32)
    model.resize_token_embeddings(rows)
    return model


@pytest.mark.parametrize("rows", [25, 26, 50])
def test_a_fitting_or_padded_vocabulary_passes(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_vocabulary(word_tokenizer(), sized(rows))


def test_a_vocabulary_too_small_is_refused_with_what_to_do():
    with pytest.raises(BadInput) as error:
        check_vocabulary(word_tokenizer(), sized(24))
    assert "highest token id is 24" in str(error.value)
    assert "an input embedding with 24 rows and an output head with 24 rows" in str(error.value)
    assert "resize_token_embeddings(25)" in str(error.value)


def test_a_vocabulary_with_holes_is_judged_by_its_highest_id():
    class Sparse(type(word_tokenizer())):
        def get_vocab(self):
            return {**super().get_vocab(), "far": 400}

    tokenizer = Sparse(tokenizer_object=word_tokenizer().backend_tokenizer)
    with pytest.raises(BadInput, match="highest token id is 400"):
        check_vocabulary(tokenizer, sized(300))


def test_a_model_with_many_more_ids_brings_a_warning():
    with pytest.warns(UserWarning, match="has 60 token ids, the tokenizer only 25"):
        check_vocabulary(word_tokenizer(), sized(60))
