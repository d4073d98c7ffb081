"""What a user may write after ``--data``, and what a name that cannot be loaded says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dyn_probe.data.records import PreferencePair
from dyn_probe.data.sources import GENERATED, load_pairs
from dyn_probe.data.statements import generate_statements
from dyn_probe.errors import BadInput

ROWS = [
    {"prompt": "2+2?", "chosen": " 4", "rejected": " 5"},
    {"prompt": "Sky?", "chosen": " blue", "rejected": " green"},
]
CONVERSATION = {
    "chosen": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}],
    "rejected": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Green."}],
}


def write_lines(path: Path, rows: list[object]) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def refusal(name: str) -> str:
    with pytest.raises(BadInput) as caught:
        load_pairs(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


STYLES = {
    "sentiment:single-token": ("Positive", "Negative"),
    "sentiment:short-suffix": ("Positive sentiment.", "Negative sentiment."),
    "sentiment:long-suffix": (
        "Positive sentiment based on my judgement.",
        "Negative sentiment based on my judgement.",
    ),
    "sentiment:prefix-suffix": (
        "It has a positive sentiment based on my judgement.",
        "It has a negative sentiment based on my judgement.",
    ),
}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_styles_read_as_in_the_paper_and_only_the_label_differs(name: str) -> None:
    pairs, skipped = load_pairs(name, count=200)
    assert len(pairs) == 200 and not skipped
    assert {tuple(sorted((p.chosen, p.rejected))) for p in pairs} == {tuple(sorted(STYLES[name]))}
    assert (pairs[0].chosen, pairs[0].rejected) == STYLES[name]
    assert len({p.prompt for p in pairs}) == 200


def test_statements_are_thousands_balanced_and_the_same_every_time() -> None:
    statements = generate_statements(4000)
    assert len({s.text for s in statements}) == 4000
    assert sum(s.sentiment == "positive" for s in statements) == 2000
    assert generate_statements(4000) == statements
    assert generate_statements(50) == statements[:50]
    assert generate_statements(50, seed=1) != statements[:50]
    assert all(s.text[0].isupper() and s.text[-1] in ".!" and "  " not in s.text for s in statements)


def test_a_style_on_ones_own_statements(tmp_path: Path) -> None:
    rows = [{"text": "I slept.", "sentiment": "negative"}, {"text": "I won.", "sentiment": "positive"}]
    file = write_lines(tmp_path / "mine.jsonl", rows)
    pairs, _ = load_pairs(f"sentiment:short-suffix@{file}")
    assert [(p.chosen, p.rejected) for p in pairs] == [
        ("Negative sentiment.", "Positive sentiment."),
        ("Positive sentiment.", "Negative sentiment."),
    ]
    assert pairs[1].prompt == "I won.\nSentiment: " and pairs[1].source == f"{file}:2"


@pytest.mark.parametrize("row", [{"text": "Hm.", "sentiment": "neutral"}, {"text": "Hm."}, {"sentiment": "positive"}])
def test_a_statement_without_a_binary_sentiment_is_refused_with_its_line(tmp_path: Path, row: dict[str, str]) -> None:
    file = write_lines(tmp_path / "mine.jsonl", [{"text": "I won.", "sentiment": "positive"}, row])
    said = refusal(f"sentiment:long-suffix@{file}")
    assert f"{file}:2" in said and "positive or negative" in said


def test_json_lines_gzip_and_parquet_give_the_same_pairs(tmp_path: Path) -> None:
    plain = write_lines(tmp_path / "a.jsonl", [*ROWS[:1], "", *ROWS[1:]])
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    table = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    found = [[(p.prompt, p.chosen, p.rejected) for p in load_pairs(str(f))[0]] for f in (plain, packed, table)]
    assert found[0] == found[1] == found[2] == [("2+2?", " 4", " 5"), ("Sky?", " blue", " green")]
    assert [p.source for p in load_pairs(plain)[0]] == [f"{plain}:1", f"{plain}:3"]


def test_conversations_survive_parquet(tmp_path: Path) -> None:
    table = tmp_path / "chat.parquet"
    pq.write_table(pa.Table.from_pylist([CONVERSATION]), table)
    (pair,), _ = load_pairs(str(table))
    assert pair.conversational and pair.prompt == ({"role": "user", "content": "Sky?"},)


def test_a_folder_is_read_by_datasets(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [*ROWS])
    write_lines(tmp_path / "test.jsonl", [*ROWS[:1]])
    pairs, _ = load_pairs(str(tmp_path))
    assert [(p.prompt, p.chosen) for p in pairs] == [("2+2?", " 4"), ("Sky?", " blue")]
    assert "row 1" in pairs[1].source


def test_a_hub_id_goes_to_datasets_with_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(place: str, split: str) -> list[dict[str, str]]:
        asked.append((place, split))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_pairs("someone/pairs")[0]) == len(load_pairs("someone/pairs:test_prefs")[0]) == 2
    assert asked == [("someone/pairs", "train"), ("someone/pairs", "test_prefs")]


def test_count_reads_only_so_many_rows(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [*ROWS, "not json"])
    assert len(load_pairs(file, count=2)[0]) == 2
    assert len(load_pairs("sentiment:long-suffix", count=3)[0]) == 3


def test_rows_that_cannot_be_trained_on_are_listed_by_line(tmp_path: Path) -> None:
    rows = [
        ROWS[0],
        {"prompt": "a", "chosen": "", "rejected": "x"},
        {"prompt": "a", "chosen": "x", "rejected": "x"},
        {"prompt": "a", "chosen": None, "rejected": "x"},
        {"prompt": "a", "chosen": "y", "rejected": " \n"},
    ]
    file = write_lines(tmp_path / "a.jsonl", rows)
    pairs, skipped = load_pairs(file)
    assert len(pairs) == 1
    assert [(s.source.rpartition(":")[2], s.reason) for s in skipped] == [
        ("2", "chosen empty"),
        ("3", "chosen and rejected are identical"),
        ("4", "chosen empty"),
        ("5", "rejected empty"),
    ]


def test_no_usable_row_at_all_is_refused_with_the_reasons(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"prompt": "a", "chosen": "x", "rejected": "x"}])
    assert f"{file}:1: chosen and rejected are identical" in refusal(file)
    assert "it has no rows" in refusal(write_lines(tmp_path / "empty.jsonl", []))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sentiment:long-sufix", "did you mean sentiment:long-suffix?"),
        ("sentimnt:long-suffix", "did you mean sentiment:long-suffix?"),
        ("mydata", "sentiment:prefix-suffix"),
        ("nothing.jsonl", "no such file: nothing.jsonl"),
        ("./nothing", "no such file or folder: ./nothing"),
    ],
)
def test_unknown_names_say_what_there_is(name: str, wanted: str) -> None:
    assert wanted in refusal(name)


def test_a_broken_line_is_named_by_its_number(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [ROWS[0], '{"prompt": "x", '])
    assert f"{file}:2: not JSON" in refusal(file)
    assert f"{file}:1: wanted one JSON object" in refusal(write_lines(tmp_path / "a.jsonl", ["[1, 2]"]))


def test_missing_fields_are_named_with_those_found(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [ROWS[0], {"prompt": "x", "good": "y", "bad": "z"}])
    said = refusal(file)
    assert f"{file}:2" in said and "no field chosen or rejected" in said and "prompt, good, bad" in said


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    (tmp_path / "b.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    (tmp_path / "c.csv").write_text("prompt,chosen\n")
    (tmp_path / "d.jsonl.gz").write_bytes(b"not gzip")
    assert "wanted a Parquet file" in refusal(str(tmp_path / "a.parquet"))
    assert "UTF-8" in refusal(str(tmp_path / "b.jsonl"))
    assert ".jsonl, .json, .jsonl.gz, .parquet" in refusal(str(tmp_path / "c.csv"))
    assert "cannot read" in refusal(str(tmp_path / "d.jsonl.gz"))


def test_a_pair_knows_whether_it_is_a_conversation() -> None:
    assert not PreferencePair("a", "b", "c").conversational
