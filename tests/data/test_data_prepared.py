"""From a name to pairs with all that is said about them: facts counted, rows left out by reason, one line each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_templates import tokenizer

from dyn_probe.data.inspect import chosen_examples, fitting_limit, inspect_data
from dyn_probe.data.prepared import PreparedPairs, Reading, lengths, prepare_pairs, skipped_rows
from dyn_probe.data.printing import inspect_lines
from dyn_probe.data.records import Skipped
from dyn_probe.data.saying import left_out_lines, said_of, summary
from dyn_probe.data.token_facts import FACTS, Limit
from dyn_probe.errors import BadInput

GOOD = {"prompt": "Where does a snail sleep?", "chosen": " Under a damp leaf.", "rejected": " On the moon."}


def write(folder: Path, rows: Sequence[dict[str, Any]], name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def good(number: int, **more: Any) -> list[dict[str, Any]]:
    return [{**GOOD, "prompt": f"{i}. {GOOD['prompt']}", **more} for i in range(number)]


def prepared(name: str, length: int | None = None, letter: str = "B", **options: Any) -> PreparedPairs:
    return prepare_pairs(name, tokenizer(letter), Limit(length), Reading(**options))


def test_numbers_of_tokens_are_those_of_numpy(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * (i + 1), "chosen": " a" * (i % 5 + 1), "rejected": " b"} for i in range(37)]
    data = prepared(write(tmp_path, rows))
    found = lengths(data.pairs)
    sizes = [len(pair.chosen.ids) - pair.chosen.start for pair in data.pairs]
    assert found["chosen"] == (np.quantile(sizes, 0.5, method="inverted_cdf"),
                               np.quantile(sizes, 0.95, method="inverted_cdf"), max(sizes))  # fmt: skip
    whole = [max(len(pair.chosen.ids), len(pair.rejected.ids)) for pair in data.pairs]
    assert found["prompt + longer response"][2] == max(whole) and found["prompt"][2] == max(
        pair.chosen.start for pair in data.pairs
    )


def test_every_fact_says_how_many_of_how_many(tmp_path: Path) -> None:
    turns = {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "human", "content": "Sky?"}],
        "chosen": [{"role": "gpt", "content": "<think>hm</think>Blue."}],
        "rejected": [{"role": "gpt", "content": "Green sky, green sky, green sky."}],
        "tools": [{"type": "function", "function": {"name": "tide"}}],
    }
    made = tokenizer("B")
    made.chat_template = (
        "{{ bos_token }}{{ bos_token }}{% for m in messages if m.role != 'system' %}"
        "<{{ m.role }}>{{ m.content.split('</think>')[-1] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    data = prepare_pairs(write(tmp_path, [turns]), made, Limit(30))
    merging = {"prompt": "Sentiment: ", "chosen": "Positive", "rejected": "Negative"}
    plain = prepared(write(tmp_path, [merging], "b.jsonl"))
    user, blue = {"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}
    call = {"function": {"name": "tide", "arguments": {"at": "noon", "of": None}}}
    again = {"role": "user", "content": "And the tide?"}
    odd = {
        "prompt": [user, blue], "chosen": [again, {"role": "assistant", "content": "", "tool_calls": [call]}],
        "rejected": [again, blue],
    }  # fmt: skip
    made.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_calls }}</s>{% endfor %}"
    chat = prepare_pairs(write(tmp_path, [odd], "c.jsonl"), made, Limit())
    bare = {"prompt": "", "chosen": "What is the sky? Blue.", "rejected": "What is the sky? Green."}
    empty = prepared(write(tmp_path, [bare], "d.jsonl"))
    facts = {fact.name: fact for fact in (*data.facts, *plain.facts, *chat.facts, *empty.facts)}
    assert {*facts, "echoes"} == {find.__name__ for find in FACTS}
    assert all((fact.count, fact.of) == (1, 1) for fact in facts.values())
    for name, said in {
        "cut": "1 of 1 pair is longer than 30 tokens and loses the end of 1 response",
        "begun_twice": "1 of 1 prompt begins with two <s>",
        "left_out": "the prompt of 1 of 1 pair is not a prefix of prompt + response (in tokens)",
        "dropped_responses": "part of 1 response of 1 of 1 pair, such as '<think>hm</think",
        "dropped_prompts": "the prompt of 1 of 1 pair, such as 'Be kind.'",
        "dropped_tools": "does not render the tools of 1 of 1 pair",
        "merged": "its end ' ' merges into the response's first token",
        "user_turns": "a response of 1 of 1 pair begins with a user or system turn",
        "null_fields": "the tools or calls of 1 of 1 pair contain null fields",
        "empty_prompts": "1 of 1 pair has an empty prompt, and both responses begin with the same words",
        "open_end": "1 of 1 pair has responses without an end-of-sequence token",
    }.items():
        assert said in facts[name].sentence, facts[name].sentence
    assert {name for name, fact in facts.items() if fact.level == "note"} == {"merged", "open_end", "null_fields"}


def test_a_few_echoes_of_the_prompt_are_said(tmp_path: Path) -> None:
    echo = {"prompt": "Say it:", "chosen": "Say it: now", "rejected": "Say it: later"}
    (fact,) = prepared(write(tmp_path, [*good(3), echo])).facts
    assert (fact.name, fact.count, fact.of) == ("echoes", 1, 4) and "kept twice, as written" in fact.sentence
    assert not prepared(write(tmp_path, [echo])).facts


def test_a_prompt_that_loses_its_beginning_is_said() -> None:
    found = prepare_pairs("sentiment:long-suffix", tokenizer("B"), Limit(20, "keep_end"), Reading(max_rows=20))
    (cut,) = (fact for fact in found.facts if fact.name == "cut")
    assert "lose the prompt's beginning" in cut.sentence and "response" not in cut.sentence


def test_the_models_positions_are_named_where_they_set_the_limit(tmp_path: Path) -> None:
    assert fitting_limit(1024, "keep_start", 12) == Limit(12, "keep_start", True)
    assert fitting_limit(1024, "keep_start", 2048) == fitting_limit(1024, "keep_start", None) == Limit(1024)
    name = write(tmp_path, [GOOD | {"prompt": "?"}])
    data = prepare_pairs(name, tokenizer("B"), fitting_limit(1024, "keep_start", 8))
    assert data.facts[0].sentence.endswith("the model has no more positions")


class TestRowsLeftOut:
    """By reason, all in run.json, loudly where they are many."""

    def test_they_are_grouped_and_counted(self, tmp_path: Path) -> None:
        rows = [*good(30), GOOD | {"chosen": ""}, GOOD | {"chosen": " "}, GOOD | {"rejected": "\ud800"}]
        data = prepared(write(tmp_path, rows))
        lines = [text for _, text in left_out_lines(data)]
        assert lines[0] == "3 of 33 rows are left out (30 are used):" and not data.loud
        path = tmp_path / "data.jsonl"
        assert lines[1] == f"  2 rows: chosen empty: {path}:31, :32"
        assert "1 row: half a surrogate pair in rejected" in lines[2] and len(lines) == 3
        assert data.manifest()["left_out"] == {"chosen empty": 2, "half a surrogate pair in rejected": 1}
        assert [row["source"].rpartition(":")[2] for row in skipped_rows(data.skipped)] == ["31", "32", "33"]

    def test_more_than_a_tenth_is_said_loudly(self, tmp_path: Path) -> None:
        data = prepared(write(tmp_path, [*good(8), GOOD | {"chosen": ""}]))
        (level, head), *_ = left_out_lines(data)
        assert data.loud and level == "loud"
        assert head.startswith("WARNING: 11 % of the rows are left out: 1 of 9 rows is left out")
        quiet = prepared(write(tmp_path, [*good(9), GOOD | {"chosen": ""}]))
        assert not quiet.loud and left_out_lines(quiet)[0][0] == "note"

    def test_neutral_statements_are_said_and_are_no_alarm(self, tmp_path: Path) -> None:
        rows = [{"text": f"So {i}.", "label_text": ("positive", "neutral")[i % 2]} for i in range(10)]
        data = prepared("sentiment:short-suffix@" + write(tmp_path, rows))
        (level, head), line = left_out_lines(data)
        assert level == "note" and head == "5 of 10 rows are left out (5 are used):"
        assert "5 rows: a neutral statement, and the task has two classes" in line[1]
        assert prepared("sentiment:short-suffix@" + write(tmp_path, rows), strict=True).pairs

    def test_many_reasons_and_places_are_cut_short(self, tmp_path: Path) -> None:
        data = prepared(write(tmp_path, good(2)))
        many = [Skipped(f"f:{i}", f"reason {i}") for i in range(12)] + [Skipped(f"g:{i}", "often") for i in range(5)]
        lines = [text for _, text in left_out_lines(type(data)(data.read, data.pairs, many, [], data.limit))]
        assert "  5 rows: often: g:0, :1, :2, …" in lines and lines[-1].startswith("  and 5 more reasons; run.json")

    def test_strict_data_refuses_with_the_reasons(self, tmp_path: Path) -> None:
        name = write(tmp_path, [*good(3), GOOD | {"chosen": ""}])
        with pytest.raises(BadInput, match=r"1 row of .* --strict-data leaves none out: .*:4: chosen empty"):
            prepared(name, strict=True)
        assert len(prepared(name).pairs) == 3

    def test_where_no_row_is_left_the_reasons_are_given(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"no pair of .* can be used: .*:1: .*no room for a response in 4 tokens"):
            prepared(write(tmp_path, good(3)), 4)


def test_the_summary_is_one_line_with_shape_and_columns(tmp_path: Path) -> None:
    rows = [{"id": i, "system": "Be kind.", "question": f"{i}?", "chosen": "Yes.", "rejected": "No."} for i in range(3)]
    said = summary(prepared(write(tmp_path, rows)))
    assert said.startswith(
        "data: 3 pairs from 3 rows, read as question, chosen, rejected (user ← question, system); not read: id; "
    )
    assert "\n" not in said
    plain = prepared(write(tmp_path, good(2)))
    assert "read as prompt, chosen, rejected; " in summary(plain) and said_of(plain) == [("plain", summary(plain))]


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    data = prepared(write(tmp_path, [*good(3, id=1), GOOD | {"chosen": ""}]), 24)
    found = json.loads(json.dumps(data.manifest()))
    assert (found["rows"], found["shape"], found["columns_not_read"]) == (4, "prompt, chosen, rejected", ["id"])
    assert found["facts"]["cut"] == {
        "count": 3, "of": 3, "sentence": data.facts[0].sentence, "level": "warning",
    } and found["max_length"] == 24  # fmt: skip


class TestInspection:
    """``dyn-probe data`` as data and as lines."""

    def test_pairs_are_shown_token_by_token_with_boundary_and_end(self, tmp_path: Path) -> None:
        found = inspect_data(write(tmp_path, good(5)))
        assert len(found["shown"]) == 3
        first = found["shown"][0]
        assert "".join(first["prompt"]) == "<s>0. Where does a snail sleep?"
        assert "".join(first["chosen"]) == " Under a damp leaf.</s>"
        lines = [line.plain for line in inspect_lines(found)]
        chosen = next(line for line in lines if line.startswith("chosen  ") and "</s>" in line)
        assert chosen.endswith("│.│</s>│") and chosen.split()[1] == str(len(first["chosen"]))
        assert "no row is left out, and the tokens match the text" in lines

    def test_a_long_part_shows_its_beginning_and_its_end(self, tmp_path: Path) -> None:
        rows = [{"prompt": "p " * 100 + "END", "chosen": " c" * 100, "rejected": " r" * 30}]
        lines = [line.plain for line in inspect_lines(inspect_data(write(tmp_path, rows), max_length=250))]
        prompt, chosen, rejected = (next(x for x in lines if x.startswith(f"{part:8} ") and "│" in x) for part in
                                    ("prompt", "chosen", "rejected"))  # fmt: skip
        assert " more … │" in prompt and prompt.endswith("│ │E│N│D│") and prompt.count("│") == 12 + 24 + 2
        assert " more … │" in chosen and "✂ cut here" not in chosen and " more … " not in rejected

    def test_a_cut_is_seen_at_the_end_of_its_part(self, tmp_path: Path) -> None:
        rows = [{"prompt": "Why?", "chosen": " c" * 100, "rejected": " r" * 3}]
        name = write(tmp_path, rows)
        lines = [line.plain for line in inspect_lines(inspect_data(name, max_length=50))]
        parts = [line for line in lines if line.startswith(("chosen  ", "rejected")) and "│" in line]
        assert [line.endswith("✂ cut here") for line in parts] == [True, False]
        assert not any(line.startswith("no pair is longer") for line in lines)

    def test_what_has_a_fact_is_among_the_shown(self, tmp_path: Path) -> None:
        rows = [*good(40), {"prompt": "Why?", "chosen": " c" * 100, "rejected": " r"}, *good(90)[40:]]
        data = prepared(write(tmp_path, rows), 60)
        assert any(pair.checks.cut_chosen for pair in chosen_examples(data, 3))
        assert len(chosen_examples(data, 3)) == 3 and len(chosen_examples(data, 200)) == len(data.pairs)
        assert chosen_examples(data, 0) == [] and chosen_examples(data, 1)[0] is data.pairs[0]

    def test_text_of_the_data_brings_no_control_characters_to_the_terminal(self, tmp_path: Path) -> None:
        rows = [{"prompt": "a\x1b[31m\x07", "chosen": " [bold]b\r\n\t", "rejected": " c"}]
        text = "\n".join(line.plain for line in inspect_lines(inspect_data(write(tmp_path, rows))))
        assert "\x1b" not in text and "\x07" not in text and "⏎" in text and "⇥" in text

    @pytest.mark.parametrize("pairs", [0, 1])
    def test_generated_data_are_shown_too(self, pairs: int) -> None:
        found = inspect_data("sentiment:long-suffix", reading=Reading(max_rows=10), pairs=pairs)
        assert found["shape"] == "statements with a sentiment" and len(found["shown"]) == pairs
        assert list(inspect_lines(found))


def prose_fact(folder: Path, *rows: dict[str, Any], columns: str = "") -> tuple[str, str] | None:
    facts = prepared(write(folder, rows), columns=columns).facts
    return next(((fact.level, fact.sentence) for fact in facts if fact.name == "prose"), None)


def test_prose_in_an_unknown_column_is_said_with_the_way_to_read_it(tmp_path: Path) -> None:
    story = [f"The {one} lives in the forest." for one in ("fox", "owl", "bear")]
    sides = {"chosen": "Sure, here is the one", "rejected": "Sure, here is the other"}
    level, said = prose_fact(
        tmp_path, *({"scenario": one, **sides, "chosen": f"{sides['chosen']} {one}"} for one in story)
    )
    assert level == "warning" and "--columns prompt=scenario" in said and "--columns ignore=scenario" in said
    level, said = prose_fact(tmp_path, *({"prompt": f"{i}?", "why": one, **sides} for i, one in enumerate(story)))
    assert level == "note" and "--columns prompt=prompt+why" in said
    level, said = prose_fact(tmp_path, *({"question": f"{i}?", "why": one, **sides} for i, one in enumerate(story)))
    assert level == "note" and "--columns user=question+why" in said


def test_prose_that_is_in_the_pair_or_left_aside_is_not_said(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"The number {i} is it", "chosen": "a b c", "rejected": "d e f", "source": "a small corpus"}
        for i in "123"
    ]
    assert prose_fact(tmp_path, *rows) is None
    assert prose_fact(tmp_path, *({**row, "text": row["prompt"]} for row in rows)) is None
    noted = [{**row, "note": f"seen by {row['prompt'][-7:]} people"} for row in rows]
    assert prose_fact(tmp_path, *noted) is not None
    assert prose_fact(tmp_path, *noted, columns="ignore=note") is None
