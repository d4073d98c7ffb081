"""Rows of preference files: explicit and implicit prompts, plain and conversational, as TRL splits them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyn_probe.data.records import PreferencePair, Skipped, plain_text
from dyn_probe.data.shapes import pair_from_row
from dyn_probe.errors import BadInput

USER = {"role": "user", "content": "Sky?"}
BLUE = {"role": "assistant", "content": "Blue."}
GREEN = {"role": "assistant", "content": "Green."}


def pair(row: dict[str, Any]) -> PreferencePair:
    found = pair_from_row(row, "here:1")
    assert isinstance(found, PreferencePair)
    return found


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
    found = pair_from_row(row, "x")
    theirs = extract_prompt(row)
    if isinstance(found, PreferencePair):
        ours = {"prompt": found.prompt, "chosen": found.chosen, "rejected": found.rejected}
        shortest = min(row.values(), key=len)
        if not max(row.values(), key=len).startswith(shortest):  # there TRL cuts within the shorter response
            assert ours == theirs
        assert found.prompt + found.chosen == row["chosen"] and found.prompt + found.rejected == row["rejected"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]},
        {"chosen": [USER, BLUE], "rejected": [USER, GREEN]},
        {"prompt": "Sky?", "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
        {"prompt": "Sky?", "chosen": [BLUE], "rejected": [GREEN]},
    ],
    ids=["explicit", "implicit", "prompt repeated as text", "prompt as text"],
)
def test_conversations_in_every_spelling(row: dict[str, Any]) -> None:
    found = pair(row)
    assert (found.prompt, found.chosen, found.rejected) == ((USER,), (BLUE,), (GREEN,))
    assert plain_text(found.prompt) == "User: Sky?"


def test_implicit_conversations_are_trls() -> None:
    from trl.data_utils import extract_prompt

    row = {"chosen": [USER, BLUE, USER, BLUE], "rejected": [USER, BLUE, USER, GREEN]}
    found = pair(row)
    ours = {"prompt": list(found.prompt), "chosen": list(found.chosen), "rejected": list(found.rejected)}
    assert ours == extract_prompt(row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": [USER, BLUE], "rejected": [USER, BLUE]}, "identical"),
        ({"prompt": [USER], "chosen": [], "rejected": [BLUE]}, "chosen empty"),
        ({"prompt": [USER], "chosen": [BLUE], "rejected": [{"role": "assistant", "content": " "}]}, "rejected empty"),
        ({"chosen": "abc", "rejected": "abc"}, "identical"),
    ],
)
def test_unusable_rows_are_skipped_with_a_reason(row: dict[str, Any], reason: str) -> None:
    found = pair_from_row(row, "here:1")
    assert isinstance(found, Skipped) and found.source == "here:1" and reason in found.reason


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": 1, "rejected": "b"}, "chosen must be a text"),
        ({"chosen": "a", "rejected": [GREEN]}, "both be texts or both be lists"),
        ({"prompt": [USER], "chosen": "a", "rejected": "b"}, "write them as messages too"),
        ({"chosen": [{"role": "user"}], "rejected": [GREEN]}, "role and content"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt must be a text"),
        ({}, "found: none"),
    ],
)
def test_a_wrong_file_is_refused_with_the_line(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match="here:1") as caught:
        pair_from_row(row, "here:1")
    assert said in str(caught.value)
