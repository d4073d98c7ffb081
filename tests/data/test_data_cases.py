"""Data as people have them, each file a kind that is easily read wrongly: the pairs, by id and number of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_templates import tokenizer

from dyn_probe.data.encoding import EncodedPair
from dyn_probe.data.prepared import PreparedPairs, Reading, prepare_pairs
from dyn_probe.data.token_facts import Limit
from dyn_probe.errors import BadInput

CASES = Path(__file__).parent / "cases"

MESSAGES = ["b3521cf05265ee45 54+20/15", "349bcdceb3c47863 51+21/20", "6c33337fd93878bd 49+17/16"]
CALLS = ["8f7d7c0646f57a1c 486+93/30", "08ec717f977d9e0a 486+92/30"]
READ: dict[tuple[str, str], list[str]] = {
    ("orca_columns.jsonl", "C"): [
        "b832c567e7e84bf2 92+20/15", "35e163af8bcdaa3b 89+21/20", "e45caa33549e9636 87+17/16",
    ],
    ("alpaca_preference.jsonl", "C"): [
        "fad56a01eccebd45 66+20/15", "663d41a4405b63af 63+21/20", "14b9b4ec7fd491ba 61+17/16",
    ],
    ("system_column.jsonl", "C"): ["52a03bf6ac6d85d5 79+19/12", "94badf5cebeac307 82+23/17"],
    ("prompt_null.jsonl", "B"): ["5c2ee5fa3722330d 18+16/14"],
    ("message_ids.jsonl", "C"): MESSAGES,
    ("prompt_not_repeated.jsonl", "C"): ["48bf01ef6e8168f1 107+24/12", "550127328aeaa23c 106+23/12"],
    ("prompt_repeated.jsonl", "C"): MESSAGES,
    ("prompt_repeated_text.jsonl", "B"): [
        "b96d5d9dfb04a2f3 23+13/7", "5e8173722fed6b09 20+14/13", "385856274ffd3e28 18+10/9",
    ],
    ("messages_as_json_text.jsonl", "C"): MESSAGES,
    ("tools_column.jsonl", "Q"): ["92b453aa8ede53a9 486+41/30", "e55d18bc0222b721 486+41/30"],
    ("tool_call_response.jsonl", "Q"): CALLS,
    ("tool_call_null_content.jsonl", "Q"): CALLS,
    ("tool_calls.parquet", "Q"): CALLS,
    ("template_kwargs.jsonl", "Q"): [
        "0f8d41d86f5be27e 71+20/15", "8d14d4e418c91937 68+21/20", "bc9ef46cb272883e 66+17/16",
    ],
    ("rendered_with_bos.jsonl", "B"): [
        "2142b0d72175ae53 29+13/7", "bd8d8c38384006c3 26+14/13", "df369e6c9770fa01 24+10/9",
    ],
    ("think_stripped.jsonl", "R"): [
        "72d56c2b0b5c8466 41+34/29", "364653bc40040d9a 38+35/34", "9ea50dda8d48243d 36+31/30",
    ],
    ("roles_human_gpt.jsonl", "C"): [
        "9c0c4e9732898194 51+24/19", "1f062cf764536057 48+25/24", "8c141f7de9395599 46+21/20",
    ],
    ("sharegpt_preference.jsonl", "C"): MESSAGES,
    ("messages_and_lists.jsonl", "C"): [
        "dc3c0c8f110149c5 85+20/15", "64beef319562bb1c 82+21/20", "61f447d63c1bf70e 80+17/16",
    ],
    ("one_row_without_shared_turn.jsonl", "C"): MESSAGES[:2],
    ("content_parts.jsonl", "C"): MESSAGES,
    ("array.json", "B"): ["ce521a14d3260354 18+13/7", "03c1bfb4613e0e09 16+13/12", "a3c946de74264840 14+9/8"],
}  # fmt: skip
"""(file, tokenizer) → its pairs."""


def prepared(name: str, letter: str = "B", limit: Limit | None = None, **options: Any) -> PreparedPairs:
    return prepare_pairs(str(CASES / name), tokenizer(letter), limit or Limit(), Reading(**options))


def written(pair: EncodedPair) -> str:
    """``pair_id prompt+chosen/rejected``."""
    start = pair.chosen.start
    return f"{pair.pair_id} {start}+{len(pair.chosen.ids) - start}/{len(pair.rejected.ids) - start}"


def left_out(data: PreparedPairs) -> list[tuple[int, str]]:
    """(line, why) of every row that is left out."""
    return [(int(row.source.rpartition(":")[2]), row.why) for row in data.skipped]


def facts(data: PreparedPairs) -> dict[str, str]:
    return {fact.name: fact.sentence for fact in data.facts}


@pytest.mark.parametrize(("name", "letter"), READ, ids=lambda value: value)
def test_the_pairs_are_those_that_the_file_means(name: str, letter: str) -> None:
    assert list(map(written, prepared(name, letter).pairs)) == READ[name, letter]


def test_every_case_is_tested() -> None:
    refused = {"images_column.jsonl", "cut_at_512.jsonl", "system_in_one_row.jsonl", "lone_surrogate.jsonl"}
    assert {name for name, _ in READ} | refused == {path.name for path in CASES.iterdir()}


@pytest.mark.parametrize(
    ("name", "letter", "line", "why"),
    [
        ("prompt_null.jsonl", "B", 2, "no prompt (prompt is null)"),
        ("one_row_without_shared_turn.jsonl", "C", 3, "share no first turn"),
        ("system_in_one_row.jsonl", "G", 3, "System role not supported"),
        ("lone_surrogate.jsonl", "B", 1, "half a surrogate pair in chosen"),
    ],
)
def test_one_bad_row_costs_one_row(name: str, letter: str, line: int, why: str) -> None:
    data = prepared(name, letter)
    ((where, said),) = left_out(data)
    assert where == line and why in said and len(data.pairs) == data.read.rows - 1
    with pytest.raises(BadInput, match=rf"{name}:{line}: .*") as caught:
        prepared(name, letter, strict=True)
    assert "--strict-data" in str(caught.value) and why in str(caught.value)


def test_images_are_refused_with_the_way_out() -> None:
    with pytest.raises(BadInput, match=r"images_column.jsonl:1: images cannot be recorded.*--columns ignore=images"):
        prepared("images_column.jsonl", "C")
    assert (
        written(prepared("images_column.jsonl", "C", columns="ignore=images").pairs[0]) == "9e16241a2a9cedf3 46+14/13"
    )


def test_what_is_cut_is_counted() -> None:
    whole = prepared("cut_at_512.jsonl")
    assert [pair.checks.whole for pair in whole.pairs] == [(1531, 1225), (1529, 1228), (1523, 1222)]
    assert not whole.facts
    cut = prepared("cut_at_512.jsonl", limit=Limit(512))
    assert {len(row.ids) for pair in cut.pairs for row in (pair.chosen, pair.rejected)} == {512}
    assert facts(cut)["cut"] == (
        "3 of 3 pairs are longer than 512 tokens and lose the end of 6 responses (no end-of-sequence token); "
        "raise --max-length (the longest has 1,531)"
    )


def test_two_beginnings_are_said() -> None:
    assert facts(prepared("rendered_with_bos.jsonl"))["begun_twice"].startswith("3 of 3 prompts begin with two <s>")


def test_what_the_template_strips_is_said() -> None:
    said = facts(prepared("think_stripped.jsonl", "R"))["dropped_responses"]
    assert "leaves out part of 6 responses of 3 of 3 pairs" in said and "'Snails and scissors.'" in said


def test_a_prompt_that_is_no_prefix_is_said_with_what_is_left_out() -> None:
    said = facts(prepared("roles_human_gpt.jsonl", "C"))["left_out"]
    assert said.startswith("the prompt of 3 of 3 pairs is not a prefix") and r"'assistant\n'" in said
    assert "human and gpt" in said


def test_tools_need_a_template() -> None:
    with pytest.raises(BadInput, match=r"tools_column.jsonl:1: the tokenizer has no chat template, and tools"):
        prepared("tools_column.jsonl", "B")


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CASES / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("name", "letter"),
    [(name, letter) for name, letter in READ if letter in "QR"] + [("think_stripped.jsonl", "Q")],
    ids=lambda value: value,
)
def test_the_tokens_are_trls(name: str, letter: str) -> None:
    """TRL 1.16's own tokenisation of the same rows (``DPOTrainer._prepare_dataset``)."""
    from datasets import Dataset, load_dataset

    dpo = pytest.importorskip("trl.trainer.dpo_trainer")
    path = str(CASES / name)
    parquet = name.endswith(".parquet")
    data = load_dataset("parquet", data_files=path, split="train") if parquet else Dataset.from_list(rows_of(name))
    made = tokenizer(letter)
    arguments = type("Arguments", (), {"dataset_num_proc": None, "max_length": None, "truncation_mode": "keep_start"})
    trainer = type("Trainer", (), {"_tokenizer": made})()
    theirs = dpo.DPOTrainer._prepare_dataset(trainer, data, made, arguments, "train")
    ours = prepared(name, letter).pairs
    assert [(r["prompt_ids"], r["chosen_ids"], r["rejected_ids"]) for r in theirs] == [
        (
            list(p.chosen.ids[: p.chosen.start]),
            list(p.chosen.ids[p.chosen.start :]),
            list(p.rejected.ids[p.rejected.start :]),
        )
        for p in ours
    ]
