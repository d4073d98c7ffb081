"""Columns beside prompt and responses: named by hand, refused where they would be lost, carried where they matter."""

from __future__ import annotations

import re
from typing import Any

import pytest
from data_rows import BLUE, GREEN, KIND, USER, pair, read, refusal

from dyn_probe.data.columns import check_prose, unread_columns
from dyn_probe.data.records import SourceRow
from dyn_probe.data.shapes import parse_columns
from dyn_probe.errors import BadInput


class TestColumnsThatWouldBeLost:
    """What a shape does not read is in the pair already, or the row is refused with what to write."""

    TEXTS = {"prompt": "Sky?", "chosen": " blue", "rejected": " green"}

    @pytest.mark.parametrize(
        ("more", "named"),
        [
            ({"context": "It is noon."}, "--columns prompt=prompt+context"),
            ({"query": "And the sea?"}, "--columns prompt=prompt+query"),
            ({"Question": "And the sea?"}, "--columns prompt=prompt+Question"),
            ({"context": "blu"}, "--columns prompt=prompt+context"),
            ({"context": "The blue"}, "--columns prompt=prompt+context"),
            ({"functions": [{"name": "f"}]}, "--columns tools=functions"),
            ({"messages": [KIND]}, "--columns prompt=messages"),
            ({"images": ["a.png"]}, "--columns ignore=images"),
            ({"video": "a.mp4", "audio": "a.wav"}, "--columns ignore=video+audio"),
        ],
        ids=str,
    )
    def test_a_part_of_the_conversation_is_not_lost(self, more: dict[str, Any], named: str) -> None:
        said = refusal(self.TEXTS | more)
        assert named in said and all(name in said for name in more) and "here:1" in said

    @pytest.mark.parametrize("column", ["context", "Question", "input"])
    def test_what_is_said_to_write_is_accepted(self, column: str) -> None:
        row = self.TEXTS | {column: "It is noon."}
        way = re.search(r"--columns (\S+) to read", refusal(row))
        assert way is not None
        found = pair(row, columns=way.group(1))
        assert found.prompt == "Sky?\nIt is noon." and found.chosen == " blue"

    def test_options_of_a_template_beside_texts_are_refused(self) -> None:
        said = refusal(self.TEXTS | {"chat_template_kwargs": {"enable_thinking": False}})
        assert "texts go through no template" in said and "--columns ignore=chat_template_kwargs" in said

    def test_in_one_row_of_many_it_costs_that_row(self) -> None:
        rows = [self.TEXTS | {"context": None}, self.TEXTS | {"context": ""}, self.TEXTS | {"context": "Noon."}]
        pairs, skipped, _ = read(*rows)
        assert len(pairs) == 2 and "column context would not be read" in skipped[0].reason

    @pytest.mark.parametrize(
        "more",
        [
            {"question": "Sky?"},
            {"messages": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "blue"}]},
            {"images": [], "tools": None, "system": "", "history": []},
            {"id": 3, "source": "somewhere", "score_chosen": 8.5, "chosen_model": "a", "annotation": {"by": "me"}},
        ],
        ids=str,
    )
    def test_what_is_in_the_pair_already_or_no_part_of_it_is_named_and_no_more(self, more: dict[str, Any]) -> None:
        (found,), _, shape = read(self.TEXTS | more)
        assert (found.prompt, found.chosen) == ("Sky?", " blue")
        assert unread_columns([SourceRow("", self.TEXTS | more)], shape) == list(more)

    def test_ignoring_a_column_is_said_with_its_name(self) -> None:
        found = pair(self.TEXTS | {"images": ["a.png"], "context": "Noon."}, columns="ignore=images+context")
        assert found.prompt == "Sky?"

    def test_unpaired_rows_are_no_pairs(self) -> None:
        said = refusal({"prompt": "a", "completion": "b", "label": True})
        assert "single responses" in said and "not pairs" in said

    def test_unknown_columns_name_the_nearest_and_the_way(self) -> None:
        said = refusal({"prompt": "a", "choosen": "b", "rejected": "c"})
        assert "did you mean choosen?" in said and "--columns prompt=COLUMN" in said


class TestNamedColumns:
    """``--columns`` for what is in no table."""

    ROW = {"frage": "Himmel?", "gut": "Blau.", "schlecht": "Grün.", "regel": "Sei nett.", "meta": {"p": 0.75}}

    def test_texts_stay_texts_and_a_system_text_makes_a_conversation(self) -> None:
        plain = pair(self.ROW, "prompt=frage,chosen=gut,rejected=schlecht")
        chat = pair(self.ROW, "prompt=frage, chosen=gut, rejected=schlecht, system=regel, win_probability=meta.p")
        assert (plain.prompt, plain.chosen) == ("Himmel?", "Blau.")
        assert [one["role"] for one in chat.prompt] == ["system", "user"] and chat.win_probability == 0.75  # type: ignore[index]

    def test_user_makes_a_turn_and_columns_are_joined(self) -> None:
        found = pair(self.ROW, "user=regel+frage,chosen=gut,rejected=schlecht")
        assert found.prompt == ({"role": "user", "content": "Sei nett.\nHimmel?"},)

    def test_what_is_not_named_has_its_own_name(self) -> None:
        row = {"prompt": "a", "better": "b", "rejected": "c"}
        assert pair(row, "chosen=better").prompt == "a"
        assert pair({**row, "better": "xb", "rejected": "xc"}, "chosen=better,ignore=prompt").prompt == "x"

    @pytest.mark.parametrize(
        ("columns", "said"),
        [
            ("prompt=frgae,chosen=gut,rejected=schlecht", "no column 'frgae' (did you mean frage?)"),
            ("promt=frage", "unknown part 'promt' (did you mean prompt?)"),
            ("prompt", "wants PART=COLUMN"),
            ("prompt=frage,prompt=gut", "names prompt twice"),
            ("prompt=frage,user=frage", "name one of them"),
        ],
    )
    def test_a_slip_is_answered(self, columns: str, said: str) -> None:
        assert said in refusal(self.ROW, columns=columns)

    def test_parts_and_ignored_columns_are_separated(self) -> None:
        assert parse_columns("prompt=a.b, ignore=c+d,ignore=e") == ({"prompt": "a.b"}, {"c", "d", "e"})


class TestSystemAndHistory:
    """Columns that stand before the prompt."""

    def test_a_system_column_makes_every_row_of_the_file_a_conversation(self) -> None:
        rows = [{"prompt": "a", "system": system, "chosen": "b", "rejected": "c"} for system in ("Be kind.", None, "")]
        pairs, _, _ = read(*rows)
        assert [[one["role"] for one in found.prompt] for found in pairs] == [["system", "user"], ["user"], ["user"]]  # type: ignore[index]

    def test_a_system_column_that_is_always_empty_changes_nothing(self) -> None:
        assert pair({"prompt": "a", "system": "", "chosen": "b", "rejected": "c"}).prompt == "a"

    def test_a_system_turn_that_is_there_already_stands_once(self) -> None:
        row = {"system": "Be kind.", "chosen": [KIND, USER, BLUE], "rejected": [KIND, USER, GREEN]}
        assert pair(row).prompt == (KIND, USER)
        _, skipped, _ = read(row, row | {"system": "Be rude."})
        assert "system turn differ" in skipped[0].reason

    def test_a_system_text_without_a_prompt_has_no_place(self) -> None:
        said = refusal({"system": "Be kind.", "chosen": "H: a A: b", "rejected": "H: a A: c"})
        assert "the column system has no place" in said and "ignore=system" in said

    @pytest.mark.parametrize("history", [[["Hi", "Hello"]], [{"role": "user", "content": "Hi"}, BLUE]])
    def test_history_comes_before_the_question(self, history: Any) -> None:
        found = pair({"instruction": "Sky?", "history": history, "chosen": "Blue.", "rejected": "Green."})
        assert [one["role"] for one in found.prompt] == ["user", "assistant", "user"]  # type: ignore[index]


class TestCallsAndTools:
    """Everything that a chat template may read is in the pair."""

    CALL = {"type": "function", "function": {"name": "tide", "arguments": {"at": "noon"}}}
    TOOLS = [{"type": "function", "function": {"name": "tide"}}]

    def test_a_response_of_calls_is_not_empty(self) -> None:
        call = {"role": "assistant", "content": None, "tool_calls": [self.CALL], "refusal": None}
        found = pair({"prompt": [USER], "chosen": [call], "rejected": [GREEN], "tools": self.TOOLS})
        assert found.chosen == ({"role": "assistant", "content": None, "tool_calls": [self.CALL]},)
        assert found.tools == tuple(self.TOOLS)

    def test_turns_with_other_calls_are_other_turns_and_ids_do_not_count(self) -> None:
        first = {"role": "assistant", "content": "", "tool_calls": [self.CALL | {"id": "1"}]}
        again = {"role": "assistant", "content": None, "tool_calls": [self.CALL | {"id": "2"}]}
        other = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "moon", "arguments": "{}"}}]}
        assert len(pair({"chosen": [USER, first, BLUE], "rejected": [USER, again, GREEN]}).prompt) == 2
        assert len(pair({"chosen": [USER, first, BLUE], "rejected": [USER, other, GREEN]}).prompt) == 1

    def test_tools_and_options_may_be_json_text(self) -> None:
        row = {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}
        found = pair(row | {"tools": '[{"name": "f"}]', "chat_template_kwargs": '{"enable_thinking": false}'})
        assert found.tools == ({"name": "f"},) and found.template_options == {"enable_thinking": False}
        assert pair(row | {"tools": ['{"name": "f"}']}).tools == ({"name": "f"},)
        assert pair(row | {"chat_template_kwargs": {"a": None, "b": 1}}).template_options == {"b": 1}

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({"tools": {"name": "f"}}, "tools must be a list"),
            ({"tools": "not json ["}, "cannot be read as JSON"),
            ({"chat_template_kwargs": {"add_generation_prompt": True}}, "may not set add_generation_prompt"),
            ({"chat_template_kwargs": 3}, "must be a mapping"),
        ],
    )
    def test_what_is_no_tool_or_option_is_refused(self, more: dict[str, Any], said: str) -> None:
        assert said in refusal({"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]} | more)

    def test_tools_beside_texts_are_refused(self) -> None:
        said = refusal({"prompt": "a", "chosen": "b", "rejected": "c", "tools": self.TOOLS})
        assert "tools need a conversation" in said

    def test_a_function_call_of_sharegpt_is_a_call(self) -> None:
        row = {
            "conversations": [{"from": "human", "value": "Tide?"}],
            "chosen": {"from": "function_call", "value": '{"name": "tide", "arguments": {}}'},
            "rejected": {"from": "gpt", "value": "No."},
        }
        assert pair(row).chosen[0]["tool_calls"][0]["function"]["name"] == "tide"  # type: ignore[index]


class TestWinProbabilities:
    """A column of p(chosen is preferred) is carried with its pair."""

    @pytest.mark.parametrize(("column", "value"), [("win_probability", 0.75), ("p_chosen", "0.75"), ("p_chosen", None)])
    def test_it_is_read_from_either_column(self, column: str, value: object) -> None:
        row = {"prompt": "a", "chosen": "b", "rejected": "c", column: value}
        assert pair(row).win_probability == (0.75 if value else None)

    @pytest.mark.parametrize("value", [73.2, -0.1, "often", True, float("nan")])
    def test_what_is_no_probability_is_refused(self, value: object) -> None:
        said = refusal({"prompt": "a", "chosen": "b", "rejected": "c", "p_chosen": value})
        assert "p_chosen must be a probability, from 0 to 1" in said


PROSE = {"frage": "Where does the snail sleep?", "chosen": "Under a leaf.", "rejected": "On the moon."}


def prose_refusal(*rows: dict[str, Any], columns: str = "") -> str | None:
    sources = [SourceRow(f"here:{n}", row) for n, row in enumerate(rows, start=1)]
    pairs, _, shape = read(*rows, columns=columns)
    try:
        check_prose(pairs, sources, unread_columns(sources, shape), columns)
    except BadInput as error:
        return str(error)
    return None


def test_prose_in_an_unknown_column_is_the_prompt_where_the_sides_share_none() -> None:
    said = prose_refusal(PROSE, PROSE | {"frage": "And where does the cow sleep?"})
    assert said is not None and "--columns prompt=frage" in said and "--columns ignore=frage" in said
    assert prose_refusal(PROSE, columns="ignore=frage") is None


def test_notes_beside_sides_that_begin_with_their_prompt_are_notes() -> None:
    begin = "Human: where does it sleep? Assistant:"
    rows = [{"note": f"seen by annotator {i} today", "chosen": f"{begin} a{i}", "rejected": f"{begin} b"} for i in "12"]
    assert prose_refusal(*rows) is None
    assert prose_refusal(*({"chosen": f"a{i}", "rejected": "b", "source": "a small corpus"} for i in range(5))) is None
