"""Pairs as tokens: boundaries and pair ids are TRL's, truncation and skipping are said aloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dyn_probe.data.built_in import built_in_model, built_in_tokenizer
from dyn_probe.data.collating import collate
from dyn_probe.data.encoding import EncodedPair, encode_pairs
from dyn_probe.data.records import PreferencePair
from dyn_probe.data.sources import load_pairs
from dyn_probe.errors import BadInput
from dyn_probe.pairs import sequence_logps
from dyn_probe.train.batches import step_order

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
USER = {"role": "user", "content": "How was the film?"}


def said(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "assistant", "content": text},)


PLAIN = [
    PreferencePair("The film was", " wonderful.", " terrible.", "plain 1"),
    PreferencePair("The film was won", "derful.", "der.", "merges across the boundary"),
    PreferencePair("Sentiment: ", "Positive", "Negative", "ends in a space"),
    PreferencePair("Ends</s>", " itself</s>", " not itself", "has its own end"),
]
CHAT = [
    PreferencePair((USER,), said("Wonderful."), said("Terrible."), "chat 1"),
    PreferencePair((USER, *said("Good."), USER), said("Great!"), said("Bad!"), "chat 2"),
]


def encode(pairs: list[PreferencePair], template: str | None = None, **options: Any) -> list[EncodedPair]:
    tokenizer = built_in_tokenizer()
    tokenizer.chat_template = template
    encoded, skipped = encode_pairs(pairs, tokenizer, **options)
    assert not skipped
    return encoded


def shown(pair: EncodedPair) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as the model meets them."""
    decode = built_in_tokenizer().decode
    sides = [decode(row.ids[row.start :]) for row in (pair.chosen, pair.rejected)]
    return decode(pair.chosen.ids[: pair.chosen.start]), sides[0], sides[1]


@pytest.mark.parametrize(("pairs", "template"), [(PLAIN, None), (CHAT, TEMPLATE)], ids=["plain", "chat"])
def test_tokens_and_boundary_are_trls(pairs: list[PreferencePair], template: str | None, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tokenizer = built_in_tokenizer()
    tokenizer.chat_template = template
    rows = [
        {
            name: value if isinstance(value := getattr(p, name), str) else list(value)
            for name in ("prompt", "chosen", "rejected")
        }
        for p in pairs
    ]
    built_in_model().save_pretrained(tmp_path / "model")
    trainer = DPOTrainer(
        str(tmp_path / "model"),
        args=DPOConfig(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True, bf16=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    theirs = [(r["prompt_ids"], r["chosen_ids"], r["rejected_ids"]) for r in trainer.train_dataset]
    ours = [
        (
            list(p.chosen.ids[: p.chosen.start]),
            list(p.chosen.ids[p.chosen.start :]),
            list(p.rejected.ids[p.rejected.start :]),
        )
        for p in encode(pairs, template)
    ]
    assert ours == theirs


def test_a_plain_response_ends_with_the_end_token_once() -> None:
    for pair in encode(PLAIN):
        assert [row.ids.count(2) - row.ids[: row.start].count(2) for row in (pair.chosen, pair.rejected)] == [1, 1]
        assert pair.chosen.ids[-1] == pair.rejected.ids[-1] == 2


def test_without_a_chat_template_conversations_are_written_plainly() -> None:
    assert shown(encode(CHAT)[0]) == ("<s>User: How was the film?\nAssistant:", " Wonderful.</s>", " Terrible.</s>")
    assert shown(encode(CHAT)[1])[0] == (
        "<s>User: How was the film?\nAssistant: Good.</s>\nUser: How was the film?\nAssistant:"
    )


def test_a_template_that_refuses_is_one_clear_line() -> None:
    with pytest.raises(BadInput, match="refuses a conversation of roles user: only nice words"):
        encode(CHAT, "{{ raise_exception('only nice words') }}")


def test_keep_start_cuts_the_end_of_the_response() -> None:
    (whole,) = encode(PLAIN[:1])
    (cut,) = encode(PLAIN[:1], max_length=len(whole.chosen.ids) - 1)
    assert cut.chosen.ids == whole.chosen.ids[:-1] and cut.chosen.start == whole.chosen.start


def test_keep_end_cuts_the_beginning_of_the_prompt() -> None:
    (whole,) = encode(PLAIN[:1])
    (cut,) = encode(PLAIN[:1], max_length=len(whole.chosen.ids) - 1, truncation="keep_end")
    assert cut.chosen.ids == whole.chosen.ids[1:] and cut.chosen.start == whole.chosen.start - 1


LONG = PreferencePair("word " * 30, "yes yes yes", "no", "long prompt")


@pytest.mark.parametrize(
    ("pair", "options", "reason"),
    [
        (LONG, {"max_length": 10}, "leaves no room for a response in 10"),
        (
            PreferencePair("a", "word " * 30, "no", "x"),
            {"max_length": 8, "truncation": "keep_end"},
            "fills all 8 tokens",
        ),
        (PreferencePair("a", "the film was good", "the film was bad", "x"), {"max_length": 4}, "same tokens within 4"),
        (PreferencePair("a", " b</s>", " b", "x"), {}, "same tokens"),
    ],
)
def test_pairs_that_cannot_be_trained_on_are_skipped_with_a_reason(
    pair: PreferencePair, options: dict[str, Any], reason: str
) -> None:
    encoded, skipped = encode_pairs([pair], built_in_tokenizer(), **options)
    assert not encoded and skipped[0].source == pair.source and reason in skipped[0].reason


def test_keep_end_leaves_both_sides_the_same_prompt() -> None:
    pair = PreferencePair(
        "a prompt of many words that is long enough to be cut: ", "short", "a much longer response", "x"
    )
    (whole,) = encode([pair])
    (cut,) = encode([pair], max_length=len(whole.rejected.ids) - 3, truncation="keep_end")
    assert cut.chosen.start == cut.rejected.start == whole.chosen.start - 3
    assert cut.chosen.ids[: cut.chosen.start] == cut.rejected.ids[: cut.rejected.start]


def test_a_response_without_anything_before_it_is_skipped() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordLevel({"yes": 0, "no": 1, "?": 2, "e": 3}, unk_token="?"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="e")
    pairs = [PreferencePair("", "yes", "no", "no prompt"), PreferencePair("?", "yes", "no", "with prompt")]
    encoded, skipped = encode_pairs(pairs, tokenizer)
    assert [p.text.source for p in encoded] == ["with prompt"] and "no token stands before" in skipped[0].reason


def test_a_pair_that_comes_twice_is_kept_once() -> None:
    encoded, skipped = encode_pairs([PLAIN[0], PLAIN[1], PLAIN[0]], built_in_tokenizer())
    assert len(encoded) == 2 and "the same pair as plain 1" in skipped[0].reason


def test_an_unknown_truncation_prints_the_choices() -> None:
    with pytest.raises(BadInput, match="keep_start or keep_end"):
        encode_pairs(PLAIN, built_in_tokenizer(), 5, "middle")


def test_a_batch_names_its_pairs_as_the_encoder_does_on_either_padding_side() -> None:
    pairs = encode(PLAIN)
    for side in ("right", "left"):
        batch = collate(pairs, pad_id=0, side=side)
        assert batch.ids == tuple(p.pair_id for p in pairs)
        assert batch.lengths.tolist() == [
            len(r.ids) - r.start for p in (pairs,) for r in [*(x.chosen for x in p), *(x.rejected for x in p)]
        ]


def test_log_probabilities_do_not_depend_on_the_padding_side() -> None:
    model, pairs = built_in_model().eval(), encode(PLAIN)
    with torch.no_grad():
        right, left = (sequence_logps(model, collate(pairs, side=side)) for side in ("right", "left"))
    torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-4)


def test_an_unknown_padding_side_prints_the_choices() -> None:
    with pytest.raises(BadInput, match="right or left"):
        collate(encode(PLAIN), side="top")


@pytest.mark.parametrize("style", ["single-token", "short-suffix", "long-suffix", "prefix-suffix"])
def test_in_every_style_the_two_sides_differ_in_one_token(style: str) -> None:
    texts, _ = load_pairs(f"sentiment:{style}", count=50)
    for pair in encode(texts):
        assert len(pair.chosen.ids) == len(pair.rejected.ids)
        assert sum(a != b for a, b in zip(pair.chosen.ids, pair.rejected.ids, strict=True)) == 1


def test_any_text_survives_the_built_in_tokenizer() -> None:
    tokenizer = built_in_tokenizer()
    for text in ("", "plain", "naïve — 日本 🙂\n\t\x00 end", " leading and trailing "):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


class TestOrder:
    """Which pairs a step trains on."""

    def test_an_epoch_meets_every_pair_once(self) -> None:
        met = [i for step in range(5) for i in step_order(20, 4, step, seed=0)]
        assert sorted(met) == list(range(20))

    def test_epochs_and_seeds_differ_and_a_step_is_a_function_of_its_number(self) -> None:
        first = step_order(20, 20, 0, seed=0)
        assert first != step_order(20, 20, 1, seed=0) and first != step_order(20, 20, 0, seed=1)
        assert first == step_order(20, 20, 0, seed=0)

    def test_no_pair_comes_twice_in_a_step(self) -> None:
        assert all(len(set(step_order(10, 7, step, seed=3))) == 7 for step in range(30))

    def test_too_few_pairs_say_what_to_lower(self) -> None:
        with pytest.raises(BadInput, match=r"16 pairs .* only 10 can be used; lower --batch-size"):
            step_order(10, 16, 0, seed=0)
