"""Pairs as tokens: boundaries and pair ids are TRL's, truncation and skipping are said aloud."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dyn_probe.data.built_in import built_in_model, built_in_tokenizer
from dyn_probe.data.collating import collate
from dyn_probe.data.encoding import EncodedPair, encode_pairs
from dyn_probe.data.reading import load_pairs
from dyn_probe.data.records import PreferencePair
from dyn_probe.data.token_checks import TokenChecks
from dyn_probe.data.token_text import measured_texts
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


def test_a_template_that_refuses_costs_the_row_and_says_why() -> None:
    tokenizer = built_in_tokenizer()
    refusing = "{% if messages | length > 3 %}{{ raise_exception('only short talks\nplease') }}{% endif %}"
    tokenizer.chat_template = refusing + TEMPLATE
    encoded, (skipped,) = encode_pairs(CHAT, tokenizer)
    assert [pair.text.source for pair in encoded] == ["chat 1"]
    assert skipped.reason == "the chat template rejects it: only short talks" and "roles user, assistant" in skipped.why


def test_a_response_that_the_template_does_not_write_costs_the_row() -> None:
    tokenizer = built_in_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    encoded, (skipped, _) = encode_pairs(CHAT, tokenizer)
    assert not encoded and skipped.why == (
        "the response adds no token to the prompt (the chat template does not render turns of the role assistant)"
    )


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
    assert not encoded and skipped[0].source == pair.source and reason in skipped[0].why


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
    assert [p.text.source for p in encoded] == ["with prompt"] and "there is no token before" in skipped[0].reason


def test_a_pair_that_comes_twice_is_kept_once() -> None:
    encoded, skipped = encode_pairs([PLAIN[0], PLAIN[1], PLAIN[0]], built_in_tokenizer())
    assert len(encoded) == 2 and "the same pair as plain 1" in skipped[0].why


class TestChecks:
    """What is found in the tokens of a pair."""

    def test_where_all_is_as_it_should_be_nothing_is_found(self) -> None:
        pair = PreferencePair("The film was", " wonderful.", " terrible.", "x")
        (found,) = encode([pair])
        assert found.checks == TokenChecks(
            prompt=found.chosen.start, whole=(len(found.chosen.ids), len(found.rejected.ids))
        )
        (chat,) = encode(CHAT[:1], TEMPLATE)
        assert chat.checks == TokenChecks(
            prompt=chat.chosen.start, whole=(len(chat.chosen.ids), len(chat.rejected.ids))
        )

    def test_a_merge_at_the_boundary_is_no_loss(self) -> None:
        (found,) = encode([PLAIN[2]])
        assert found.checks.merged == " " and not found.checks.left_out

    def test_a_prompt_that_the_template_writes_otherwise_is_a_loss(self) -> None:
        (found,) = encode(CHAT[:1], TEMPLATE.replace("%}<assistant>", "%}<bot>"))
        assert found.checks.left_out == "bot>" and not found.checks.merged

    @pytest.mark.parametrize(("over", "cut"), [(0, (False, False)), (1, (True, False)), (9, (True, True))])
    def test_cut_responses_are_those_that_lost_their_end(self, over: int, cut: tuple[bool, bool]) -> None:
        pair = PreferencePair("a prompt:", " one two three four five six seven eight nine", " uno dos tres", "x")
        (whole,) = encode([pair])
        length = len(whole.chosen.ids) - over
        if over == 9:
            length = len(whole.rejected.ids) - 1
        (found,) = encode([pair], max_length=length)
        assert (found.checks.cut_chosen, found.checks.cut_rejected) == cut and not found.checks.cut_prompt
        assert found.checks.whole == whole.checks.whole

    def test_a_prompt_that_lost_its_beginning_is_known(self) -> None:
        (whole,) = encode(PLAIN[:1])
        (found,) = encode(PLAIN[:1], max_length=len(whole.chosen.ids) - 1, truncation="keep_end")
        assert found.checks.cut_prompt and not (found.checks.cut_chosen or found.checks.cut_rejected)

    def test_a_beginning_token_in_the_text_is_one_too_many(self) -> None:
        (found,) = encode([PreferencePair("<s>The film was", " good", " bad", "x")])
        assert found.checks.begun_twice
        (chat,) = encode(CHAT[:1], "{{ bos_token }}" + TEMPLATE)
        assert chat.checks.begun_twice

    def test_an_end_of_the_templates_own_is_no_end_of_sequence(self) -> None:
        (found,) = encode(CHAT[:1], TEMPLATE.replace("{{ eos_token }}", "<end>\n"))
        assert found.checks.open_end == repr("<end>\n")

    def test_what_the_template_strips_is_named_once_per_side(self) -> None:
        strip = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
        pair = PreferencePair((USER,), said("<think>\nquick\na long thought\n</think>Good."), said("Bad."), "x")
        (found,) = encode([pair], strip)
        assert (found.checks.dropped_response, found.checks.dropped_responses) == ("a long thought", 1)
        (kept,) = encode([pair], TEMPLATE)
        assert kept.checks.dropped_responses == 0

    def test_white_space_and_capitals_that_the_tokenizer_changes_are_not_stripped(self) -> None:
        trim = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")
        (found,) = encode([PreferencePair((USER,), said(" Good.\n\n Very.  "), said("Bad."), "x")], trim)
        assert found.checks.dropped_responses == 0

    def test_a_system_turn_that_the_template_ignores_is_found(self) -> None:
        ignore = TEMPLATE.replace("in messages %}", "in messages if m['role'] != 'system' %}")
        pair = PreferencePair(({"role": "system", "content": "Be kind."}, USER), said("Good."), said("Bad."), "x")
        (found,) = encode([pair], ignore)
        assert found.checks.dropped_prompt == "Be kind."

    def test_tools_and_calls_that_the_template_ignores_are_found(self) -> None:
        call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "tide", "arguments": {}}}]}
        tools = ({"type": "function", "function": {"name": "tide", "parameters": {}}},)
        pair = PreferencePair((USER,), (call,), said("No."), "x", tools)
        (found,) = encode([pair], TEMPLATE)
        assert found.checks.dropped_tools and found.checks.dropped_response == "tide"
        shows = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] }}{{ m['tool_calls'] }}")
        (shown_,) = encode([pair], "{{ bos_token }}{{ tools }}" + shows.removeprefix("{{ bos_token }}"))
        assert not shown_.checks.dropped_tools and not shown_.checks.dropped_response


def test_the_template_reads_tools_and_its_own_variables() -> None:
    template = TEMPLATE.replace(
        "{{ bos_token }}", "{{ bos_token }}{% if loud %}LOUD{% endif %}{{ tools | tojson if tools else '' }}"
    )
    tools = ({"type": "function", "function": {"name": "tide", "parameters": {}}},)
    plain = PreferencePair((USER,), said("Good."), said("Bad."), "x")
    texts = [
        shown(encode([pair], template)[0])[0]
        for pair in (plain, replace(plain, tools=tools), replace(plain, template_options={"loud": True}))
    ]
    assert texts[0].startswith("<s><user>") and '"tide"' in texts[1] and texts[2].startswith("<s>LOUD<user>")


def test_the_win_probability_is_carried() -> None:
    pairs = [replace(pair, win_probability=value) for pair, value in zip(PLAIN, (0.5, None, 0.75, 1.0), strict=True)]
    assert [pair.win_probability for pair in encode(pairs)] == [0.5, None, 0.75, 1.0]


class TestMeasuredTexts:
    """What is shown is what was measured."""

    def test_a_whole_pair_reads_as_its_text(self) -> None:
        assert measured_texts(encode(PLAIN[:1])[0], built_in_tokenizer()) == (
            "The film was",
            " wonderful.",
            " terrible.",
        )

    def test_markers_of_a_template_are_shown(self) -> None:
        prompt, chosen, _ = measured_texts(encode(CHAT[:1], TEMPLATE)[0], built_in_tokenizer())
        assert prompt == "<user>How was the film?</s><assistant>" and chosen == "Wonderful."

    def test_a_cut_is_marked_and_what_is_cut_is_not_shown(self) -> None:
        pair = PreferencePair("a prompt:", " one two three four five", " one", "x")
        (whole,) = encode([pair])
        (found,) = encode([pair], max_length=len(whole.chosen.ids) - 3)
        _, chosen, rejected = measured_texts(found, built_in_tokenizer())
        assert (
            chosen.endswith(f" ⟨cut at {len(found.chosen.ids)} tokens⟩") and "five" not in chosen and rejected == " one"
        )
        (found,) = encode([pair], max_length=len(whole.chosen.ids) - 2, truncation="keep_end")
        prompt, chosen, _ = measured_texts(found, built_in_tokenizer())
        assert prompt.startswith("⟨beginning cut⟩ ") and chosen == " one two three four five"

    def test_what_is_stripped_is_not_shown(self) -> None:
        strip = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
        pair = PreferencePair((USER,), said("<think>hm</think>Good."), said("Bad."), "x")
        assert measured_texts(encode([pair], strip)[0], built_in_tokenizer())[1] == "Good."

    def test_a_second_beginning_token_is_shown(self) -> None:
        (found,) = encode([PreferencePair("<s>The film was", " good", " bad", "x")])
        assert measured_texts(found, built_in_tokenizer())[0] == "<s>The film was"


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
        with pytest.raises(BadInput, match=r"16 pairs .* only 10 are usable; lower --batch-size"):
            step_order(10, 16, 0, seed=0)
