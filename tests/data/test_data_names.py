"""What a user may write after ``--data``, and what a name that cannot be loaded says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dyn_probe.data.generated.statements import generate_statements
from dyn_probe.data.names import GENERATED
from dyn_probe.data.reading import load_pairs
from dyn_probe.data.records import PreferencePair
from dyn_probe.errors import BadInput, unknown

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


def test_neutral_statements_of_a_public_data_set_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        {"text": "I won.", "label": 2, "label_text": "positive"},
        {"text": "Hm.", "label": 1, "label_text": "neutral"},
        {"text": "I slept.", "label": 0, "label_text": "Negative"},
    ]
    file = write_lines(tmp_path / "mine.jsonl", [*rows])
    pairs, (dropped,) = load_pairs(f"sentiment:short-suffix@{file}")
    assert [(p.prompt.partition("\n")[0], p.chosen) for p in pairs] == [  # type: ignore[union-attr]
        ("I won.", "Positive sentiment."),
        ("I slept.", "Negative sentiment."),
    ]
    assert dropped.source == f"{file}:2" and dropped.expected and "neutral" in dropped.reason
    assert len(load_pairs(f"sentiment:short-suffix@{file}", count=2)[0]) == 2


def test_columns_are_for_pairs_and_not_for_statements() -> None:
    with pytest.raises(BadInput, match="reads text, and sentiment or label_text"):
        load_pairs("sentiment:long-suffix", columns="prompt=text")


def test_statements_may_lie_in_any_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text('textID,text,sentiment\n1,"I won, really.",positive\n2,Hm.,neutral\n')
    pairs, skipped = load_pairs(f"sentiment:single-token@{tmp_path / 'mine.csv'}")
    assert [p.prompt for p in pairs] == ["I won, really.\nSentiment: "] and len(skipped) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "Hm."}, "got none among the columns text"),
        ({"sentiment": "positive"}, "got text None"),
        ({"text": "Hm.", "label": 1}, "a number does not say which class it is"),
        ({"text": "Hm.", "sentiment": "mixed"}, "got sentiment 'mixed'"),
        ({"text": "Hm.\ud83d", "sentiment": "positive"}, "half a surrogate pair"),
    ],
)
def test_a_statement_without_a_binary_sentiment_costs_itself(tmp_path: Path, row: dict[str, object], said: str) -> None:
    file = write_lines(tmp_path / "mine.jsonl", [{"text": "I won.", "sentiment": "positive"}, row])
    _, (skipped,) = load_pairs(f"sentiment:long-suffix@{file}")
    assert skipped.source == f"{file}:2" and said in skipped.why and not skipped.expected
    assert f"{file}:1" in refusal(f"sentiment:long-suffix@{write_lines(tmp_path / 'mine.jsonl', [row])}")


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
    assert len(load_pairs(f"{tmp_path}:test")[0]) == 1 and len(load_pairs(f"{tmp_path}:train[:1]")[0]) == 1


def test_a_folder_without_a_train_split_names_the_spelling_that_reads_it(tmp_path: Path) -> None:
    write_lines(tmp_path / "test.jsonl", [*ROWS])
    said = refusal(str(tmp_path))
    assert f"the folder {tmp_path} has no split train; it has: test; write {tmp_path}:test" in said
    assert len(load_pairs(f"{tmp_path}:test")[0]) == 2


def test_an_empty_folder_says_what_it_wants(tmp_path: Path) -> None:
    said = refusal(str(tmp_path))
    assert f"cannot read the folder {tmp_path}" in said and "train.jsonl" in said


def test_a_folder_of_save_to_disk_is_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    data = Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    DatasetDict({"validation": data}).save_to_disk(tmp_path / "many")
    assert [p.chosen for p in load_pairs(str(tmp_path / "one"))[0]] == [" 4", " blue"]
    assert len(load_pairs(f"{tmp_path / 'many'}:validation")[0]) == 2
    assert f"it has: validation; write {tmp_path / 'many'}:validation" in refusal(str(tmp_path / "many"))
    assert "write" in refusal(f"{tmp_path / 'one'}:nothing")


def test_a_hub_id_goes_to_datasets_with_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(place: str, split: str) -> list[dict[str, str]]:
        asked.append((place, split))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("dyn_probe.data.names.hub_away", lambda: "")
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


def test_a_broken_line_costs_itself(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [ROWS[0], '{"prompt": "x", ', "3", ROWS[1], {"prompt": "x", "good": "y"}])
    pairs, skipped = load_pairs(file)
    assert len(pairs) == 2
    assert [(row.source, row.reason) for row in skipped] == [
        (f"{file}:2", "not JSON"), (f"{file}:3", "no JSON object"), (f"{file}:5", "chosen and rejected empty"),
    ]  # fmt: skip


def test_bytes_that_are_no_text_cost_their_line(tmp_path: Path) -> None:
    file = Path(write_lines(tmp_path / "a.jsonl", [*ROWS]))
    file.write_bytes(file.read_bytes() + b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}\n')
    pairs, (skipped,) = load_pairs(str(file))
    assert len(pairs) == 2 and (skipped.source, skipped.reason) == (f"{file}:3", "not UTF-8")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
def test_an_array_is_read_with_the_lines_of_its_entries(tmp_path: Path, name: str) -> None:
    text = "\ufeff" + json.dumps([*ROWS, 3], indent=1)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    pairs, (skipped,) = load_pairs(str(path))
    assert [p.source for p in pairs] == [f"{path}:2", f"{path}:7"]
    assert (skipped.source, skipped.reason) == (f"{path}:12", "no JSON object")


def test_a_broken_array_says_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n{"prompt": "a", "chosen": "b", "rejected": "c"},\n{"prompt": }\n]')
    assert f"{tmp_path / 'a.json'}:3: not JSON" in refusal(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    "whole", [{"prompt": {"0": "a"}, "chosen": {"0": "b"}}, {"data": ROWS}, {"prompt": ["a"], "chosen": ["b"]}]
)
def test_one_object_over_several_lines_is_no_rows(tmp_path: Path, whole: object) -> None:
    (tmp_path / "a.json").write_text(json.dumps(whole, indent=2))
    said = refusal(str(tmp_path / "a.json"))
    assert "one JSON object" in said and "orient='records'" in said
    (tmp_path / "b.json").write_text(json.dumps(ROWS[0], indent=2).replace("\n", " "))
    assert len(load_pairs(str(tmp_path / "b.json"))[0]) == 1


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t"), ("a.CSV", ","), ("a.csv.gz", ",")])
def test_tables_are_read_with_quotes_and_lines(tmp_path: Path, name: str, separator: str) -> None:
    import csv
    import io

    out = io.StringIO()
    rows = [
        ["prompt", "chosen", "rejected"],
        ["2+2?", " 4,\n\tor so", " 5"],
        ["Sky?", 'a "blue"' * 40000, "c"],
        ["", "d", "e"],
    ]
    csv.writer(out, delimiter=separator).writerows([*rows, ["x", "y"]])
    path = tmp_path / name
    path.write_bytes(gzip.compress(out.getvalue().encode()) if name.endswith("gz") else out.getvalue().encode())
    pairs, skipped = load_pairs(str(path))
    assert [(p.prompt, p.chosen) for p in pairs] == [("2+2?", " 4,\n\tor so"), ("Sky?", 'a "blue"' * 40000)]
    assert [p.source for p in pairs] == [f"{path}:2", f"{path}:4"]
    assert [(row.source, row.reason) for row in skipped] == [
        (f"{path}:5", "no prompt"), (f"{path}:6", "another number of cells than the header"),
    ]  # fmt: skip


def test_conversations_in_a_table_as_python_prints_them(tmp_path: Path) -> None:
    import csv

    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["chosen", "rejected"], [str(CONVERSATION["chosen"]), str(CONVERSATION["rejected"])]]
        )
    (pair,), _ = load_pairs(str(tmp_path / "a.csv"))
    assert pair.prompt == ({"role": "user", "content": "Sky?"},)


def test_missing_columns_are_named_with_those_found(tmp_path: Path) -> None:
    said = refusal(write_lines(tmp_path / "a.jsonl", [{"prompt": "x", "good": "y", "bad": "z"}]))
    assert "a.jsonl:1: no column chosen or rejected" in said and "prompt, good, bad" in said


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    (tmp_path / "b.jsonl").write_bytes('{"prompt": "x"}\n'.encode("utf-16"))
    (tmp_path / "c.xlsx").write_text("prompt,chosen\n")
    (tmp_path / "d.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "e.csv").write_text('prompt,chosen,rejected\na,"b,c\n')
    assert "wanted a Parquet file" in refusal(str(tmp_path / "a.parquet"))
    assert "written in UTF-16" in refusal(str(tmp_path / "b.jsonl"))
    assert ".jsonl, .ndjson, .json, .csv, .tsv, .parquet" in refusal(str(tmp_path / "c.xlsx"))
    assert "cannot read" in refusal(str(tmp_path / "d.jsonl.gz"))
    assert "e.csv:2: no table" in refusal(str(tmp_path / "e.csv"))


def test_a_pair_knows_whether_it_is_a_conversation() -> None:
    assert not PreferencePair("a", "b", "c").conversational


def test_a_table_separated_by_semicolons_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt;chosen;rejected\nWhat, then?;A dog;"A cat; or so"\n', encoding="utf-8")
    (pair,), skipped = load_pairs(str(tmp_path / "a.csv"))
    assert (pair.prompt, pair.chosen, pair.rejected) == ("What, then?", "A dog", "A cat; or so") and not skipped


def test_rows_in_a_field_of_one_line_are_no_row(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (tmp_path / "a.json").write_text(json.dumps({"data": [row, row]}))
    with pytest.raises(BadInput, match=r"one JSON object .with data"):
        load_pairs(str(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text(json.dumps(row | {"prompt": [{"role": "user", "content": "a"}]}))
    assert len(load_pairs(str(tmp_path / "a.json"))[0]) == 1


def test_a_long_unknown_name_is_cut_and_the_choices_stay_in_sight() -> None:
    said = unknown("objective", "x" * 5000, ["dpo", "ipo"])
    assert len(said) < 150 and said.endswith("choose one of: dpo, ipo")
    assert unknown("objective", "dppo", ["dpo", "ipo"]).startswith("unknown objective 'dppo' (did you mean dpo?)")
