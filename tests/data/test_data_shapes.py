"""Rows of preference files: which columns make a pair, in every shape of the table and in none of it."""

from __future__ import annotations

from typing import Any

import pytest
from data_rows import BLUE, GREEN, KIND, USER, left_out, pair, read, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from dyn_probe.data.shapes import SHAPES, value_at


def test_a_plain_implicit_prompt_is_what_both_begin_with() -> None:
    found = pair({"chosen": "Human: hi\n\nAssistant: good day", "rejected": "Human: hi\n\nAssistant: go away"})
    assert (found.prompt, found.chosen, found.rejected) == ("Human: hi\n\nAssistant: go", "od day", " away")


def test_the_space_before_the_first_difference_belongs_to_the_responses() -> None:
    found = pair({"chosen": "The sky is blue", "rejected": "The sky is green"})
    assert (found.prompt, found.chosen) == ("The sky is", " blue")


texts = st.text(alphabet="ab ", min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(texts, texts, texts)
def test_plain_splits_are_trls(shared: str, chosen: str, rejected: str) -> None:
    from trl.data_utils import extract_prompt

    row = {"chosen": shared + chosen, "rejected": shared + rejected}
    pairs, _, _ = read(row)
    theirs = extract_prompt(row)
    for found in pairs:
        ours = {"prompt": found.prompt, "chosen": found.chosen, "rejected": found.rejected}
        shortest = min(row.values(), key=len)
        if not max(row.values(), key=len).startswith(shortest):  # there TRL cuts within the shorter response
            assert ours == theirs
        assert isinstance(found.prompt, str) and isinstance(found.chosen, str) and isinstance(found.rejected, str)
        assert found.prompt + found.chosen == row["chosen"] and found.prompt + found.rejected == row["rejected"]


PARTS = [{"type": "text", "text": "Bl"}, {"type": "text", "text": "ue."}]
SPELLINGS: dict[str, dict[str, Any]] = {
    "explicit": {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]},
    "implicit": {"chosen": [USER, BLUE], "rejected": [USER, GREEN]},
    "prompt repeated as text": {"prompt": "Sky?", "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
    "prompt repeated with other white space": {"prompt": " Sky?\n", "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
    "prompt repeated as turns": {"prompt": [USER], "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
    "prompt null beside conversations": {"prompt": None, "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
    "prompt empty beside conversations": {"prompt": [], "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
    "prompt as text": {"prompt": "Sky?", "chosen": [BLUE], "rejected": [GREEN]},
    "sides are one message": {"prompt": [USER], "chosen": BLUE, "rejected": GREEN},
    "sides are texts": {"prompt": [USER], "chosen": "Blue.", "rejected": "Green."},
    "other keys differ": {"chosen": [USER | {"id": 1}, BLUE], "rejected": [USER | {"id": 2, "ts": None}, GREEN]},
    "content parts": {"prompt": [USER], "chosen": [BLUE | {"content": PARTS}], "rejected": [GREEN]},
    "JSON text": {
        "chosen": '[{"role": "user", "content": "Sky?"}, {"content": "Blue.", "role": "assistant"}]',
        "rejected": '[{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Green."}]',
    },
    "as Python prints it": {"chosen": str([USER, BLUE]), "rejected": str([USER, GREEN])},
    "prompt as JSON text": {"prompt": '[{"role": "user", "content": "Sky?"}]', "chosen": "Blue.", "rejected": "Green."},
    "messages": {"messages": [USER], "chosen": [BLUE], "rejected": [GREEN]},
    "messages with the answer": {"messages": [USER, BLUE], "chosen": [BLUE], "rejected": [GREEN]},
    "messages with the whole chosen": {"messages": [USER, BLUE], "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
    "ms-swift": {"messages": [USER, BLUE], "rejected_response": "Green."},
    "ms-swift, both": {"messages": [USER, BLUE], "rejected_messages": [USER, GREEN]},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Sky?"}],
        "chosen": {"from": "gpt", "value": "Blue."},
        "rejected": {"from": "gpt", "value": "Green."},
    },
    "conversation and texts": {"conversation": [USER], "chosen": "Blue.", "rejected": "Green."},
    "OpenAI": {"input": {"messages": [USER]}, "preferred_output": [BLUE], "non_preferred_output": [GREEN]},
    "OpenAI, a text as input": {"input": "Sky?", "preferred_output": "Blue.", "non_preferred_output": "Green."},
    "orca": {"system": "", "question": "Sky?", "chosen": "Blue.", "rejected": "Green."},
    "alpaca": {"instruction": "Sky?", "input": "", "chosen": "Blue.", "rejected": "Green."},
    "alpaca without input": {"instruction": "Sky?", "chosen": "Blue.", "rejected": "Green."},
    "LLaMA-Factory, older": {"instruction": "Sky?", "input": None, "output": ["Blue.", "Green."]},
    "argilla": {"instruction": "Sky?", "chosen_response": "Blue.", "rejected_response": "Green."},
    "distilabel": {"input": "Sky?", "chosen": "Blue.", "rejected": "Green.", "order": ["a", "b"]},
    "query": {"query": "Sky?", "chosen": "Blue.", "rejected": "Green."},
}


@pytest.mark.parametrize("row", SPELLINGS.values(), ids=SPELLINGS)
def test_one_conversation_in_every_spelling(row: dict[str, Any]) -> None:
    found = pair(row)
    keys = [[(one["role"], one["content"]) for one in part] for part in (found.prompt, found.chosen, found.rejected)]
    assert keys == [[("user", "Sky?")], [("assistant", "Blue.")], [("assistant", "Green.")]]


def test_every_shape_of_the_table_is_tried_by_some_spelling() -> None:
    tried = {read(row)[2].name for row in SPELLINGS.values()}
    plain = {"prompt": "a", "chosen_response": "b", "rejected_response": "c"}
    assert tried | {read(plain)[2].name} == {shape.name for shape in SHAPES}


def test_implicit_conversations_are_trls() -> None:
    from trl.data_utils import extract_prompt

    row = {"chosen": [USER, BLUE, USER, BLUE], "rejected": [USER, BLUE, USER, GREEN]}
    found = pair(row)
    ours = {"prompt": list(found.prompt), "chosen": list(found.chosen), "rejected": list(found.rejected)}
    assert ours == extract_prompt(row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": [USER], "chosen": [BLUE], "rejected": [BLUE]}, "identical"),
        ({"prompt": [USER], "chosen": [BLUE | {"id": 1}], "rejected": [BLUE | {"id": 2}]}, "identical"),
        ({"prompt": [USER], "chosen": [], "rejected": [BLUE]}, "chosen empty"),
        ({"prompt": [USER], "chosen": [BLUE], "rejected": [{"role": "assistant", "content": " "}]}, "rejected empty"),
        ({"prompt": [USER], "chosen": [BLUE], "rejected": [{"role": "assistant", "content": None}]}, "rejected empty"),
        ({"prompt": "x", "chosen": "abc", "rejected": "abc"}, "identical"),
        ({"prompt": "x", "chosen": None, "rejected": "abc"}, "chosen empty"),
        ({"prompt": None, "chosen": "It is blue.", "rejected": "It is green."}, "no prompt (prompt is null)"),
        ({"prompt": None, "chosen": [BLUE], "rejected": [GREEN]}, "share no first turn"),
        ({"prompt": "x", "chosen": "a\udc00", "rejected": "b"}, "half a surrogate pair in chosen"),
        ({"prompt": [USER | {"content": "\ud800"}], "chosen": [BLUE], "rejected": [GREEN]}, "surrogate pair in prompt"),
        ({"prompt": [USER], "chosen": [USER, BLUE], "rejected": [GREEN]}, "chosen repeats the prompt's turns"),
    ],
)
def test_a_row_that_cannot_be_used_costs_itself_alone(row: dict[str, Any], reason: str) -> None:
    assert reason in left_out(row)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": 1, "rejected": "b"}, "chosen must be a text"),
        ({"chosen": "a", "rejected": [GREEN]}, "both be texts or both be lists"),
        ({"chosen": [{"role": "user"}], "rejected": [GREEN]}, "role and content"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt must be a text"),
        ({"prompt": [USER], "chosen": [BLUE | {"content": 3}], "rejected": [GREEN]}, "must be a text"),
        ({"prompt": [USER], "chosen": [BLUE | {"content": [{"type": "image_url"}]}], "rejected": [GREEN]}, "image_url"),
        ({"chosen": '[{"role": "user", "content": "cut o', "rejected": "b"}, "cannot be read as JSON"),
        ({"instruction": "a", "input": 3, "chosen": "b", "rejected": "c"}, "input must be a text"),
        ({}, "found the columns none"),
        ({"text": "a", "label_text": "positive"}, "--data sentiment:STYLE@FILE"),
    ],
)
def test_a_file_of_wrong_rows_is_refused_with_its_first_line(row: dict[str, Any], said: str) -> None:
    found = refusal(row)
    assert said in found and "here:1" in found


class TestPromptsThatAreRepeated:
    """A prompt stands once, wherever the file has it twice; what is not repeated is kept."""

    def test_a_text_prompt_that_is_no_turn_of_the_sides_is_the_first_users_turn(self) -> None:
        found = pair({"prompt": "How far?", "chosen": [BLUE, USER, BLUE], "rejected": [BLUE, USER, GREEN]})
        assert found.prompt == ({"role": "user", "content": "How far?"}, BLUE, USER) and found.chosen == (BLUE,)

    def test_a_short_prompt_that_occurs_within_a_turn_is_not_taken_for_a_repetition(self) -> None:
        found = pair({"prompt": "u", "chosen": [BLUE, USER, BLUE], "rejected": [BLUE, USER, GREEN]})
        assert found.prompt[0] == {"role": "user", "content": "u"}

    @pytest.mark.parametrize(
        "prompt", ["Human: Sky?\n\nAssistant:", "<|user|> Sky? <|end|><|assistant|>", "[INST] Sky? [/INST]"]
    )
    def test_a_prompt_that_writes_the_shared_turns_in_one_text_is_the_same_prompt(self, prompt: str) -> None:
        assert pair({"prompt": prompt, "chosen": [USER, BLUE], "rejected": [USER, GREEN]}).prompt == (USER,)

    def test_a_prompt_that_holds_a_shared_turn_and_more_is_another_prompt(self) -> None:
        found = pair({"prompt": "Blue. Why?", "chosen": [BLUE, USER, BLUE], "rejected": [BLUE, USER, GREEN]})
        assert found.prompt[0] == {"role": "user", "content": "Blue. Why?"}

    def test_a_prompt_beside_sides_with_another_prompt_is_refused(self) -> None:
        row = {"prompt": "Something else entirely.", "chosen": [USER, BLUE], "rejected": [USER, GREEN]}
        assert "a prompt of their own" in refusal(row)

    def test_a_question_beside_sides_with_another_prompt_is_refused(self) -> None:
        row = {"question": "Something else entirely.", "chosen": [USER, BLUE], "rejected": [USER, GREEN]}
        assert "a prompt of their own" in refusal(row)
        assert pair(row | {"question": "Sky?"}).prompt == (USER,)

    def test_the_last_turns_of_a_prompt_may_be_repeated_alone(self) -> None:
        found = pair({"prompt": [KIND, USER], "chosen": [USER, BLUE], "rejected": [USER, GREEN]})
        assert (found.prompt, found.chosen) == ((KIND, USER), (BLUE,))

    def test_a_prompt_of_the_last_question_lies_within_the_whole_conversation(self) -> None:
        before = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        found = pair({"prompt": [USER], "chosen": [*before, USER, BLUE], "rejected": [*before, USER, GREEN]})
        assert (found.prompt, found.chosen) == ((*before, USER), (BLUE,))

    def test_an_explicit_prompt_keeps_its_end_as_in_trl(self) -> None:
        found = pair({"prompt": [USER], "chosen": [BLUE, USER, BLUE], "rejected": [BLUE, USER, GREEN]})
        assert (found.prompt, len(found.chosen)) == ((USER,), 3)

    @pytest.mark.parametrize(("chosen", "rejected"), [("Q: a A: b", "Q: a A: c"), (" Q: a A: b", " Q: a A: c")])
    def test_texts_that_repeat_the_prompt_lose_it(self, chosen: str, rejected: str) -> None:
        found = pair({"prompt": "Q: a A:", "chosen": chosen, "rejected": rejected})
        assert (str(found.prompt).strip(), found.chosen, found.rejected) == ("Q: a A:", " b", " c")

    def test_a_few_echoes_among_many_pairs_stay_as_they_are(self) -> None:
        echo = {"prompt": "Say it:", "chosen": "Say it: now", "rejected": "Say it: later"}
        pairs, _, _ = read(echo, *({"prompt": f"{i}", "chosen": " a", "rejected": " b"} for i in range(3)))
        assert (pairs[0].prompt, pairs[0].chosen) == ("Say it:", "Say it: now")


@pytest.mark.parametrize(
    ("column", "value"),
    [("a", {"b": [1, 2, 3]}), ("a.b", [1, 2, 3]), ("a.b[0]", 1), ("a.b[-1]", 3), ("a.b[:-1]", [1, 2]),
     ("a.b[-1:]", [3]), ("a.b[7]", None), ("a.c.d", None), ("x", None), ("dotted.name", 5)],
)  # fmt: skip
def test_a_path_leads_into_a_value(column: str, value: Any) -> None:
    assert value_at({"a": {"b": [1, 2, 3]}, "dotted.name": 5}, column) == value


def test_json_answers_are_answers_and_no_messages() -> None:
    row = {"prompt": "As JSON:", "chosen": '{"role": "cook", "age": 3}', "rejected": '{"value": 3}'}
    assert pair(row).chosen == row["chosen"]
    row = {"prompt": "A chat:", "chosen": '[{"role": "user", "content": "hi"}]', "rejected": "No."}
    assert pair(row).chosen == row["chosen"]


def test_a_side_of_user_turns_alone_is_no_response() -> None:
    said = refusal({"messages": [USER, BLUE, USER], "rejected_response": "No."})
    assert "chosen is no response of the model" in said and "assistant's turn" in said
    assert "chosen and rejected are no response" in refusal(
        {"prompt": [USER], "chosen": [{**USER, "content": "a"}], "rejected": [{**USER, "content": "b"}]}
    )


def test_refusals_say_what_to_write() -> None:
    assert "(did you mean choosen and rejectd?)" in refusal({"prompt": "a", "choosen": "b", "rejectd": "c"})
    row = {"prompt": "a", "chosen": ["b"], "rejected": ["c"]}
    assert "--columns chosen=COLUMN[0]" in refusal(row)
    assert pair(row, columns="chosen=chosen[0],rejected=rejected[0]").chosen == "b"
    image = [{"type": "image"}, {"type": "text", "text": "What?"}]
    assert "text-only" in refusal({"prompt": [{"role": "user", "content": image}], "chosen": "b", "rejected": "c"})
