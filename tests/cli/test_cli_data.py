"""``dyn-probe data`` as a new user meets it: every case of the folder, and what it says of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dyn_probe_cli.app import app
from typer.testing import CliRunner

from dyn_probe.errors import BadInput

CASES = Path(__file__).parents[1] / "data" / "cases"
REFUSED = {
    "images_column.jsonl": "--columns ignore=images",
    "tools_column.jsonl": "no chat template",
    "tool_call_response.jsonl": "no chat template",
    "tool_call_null_content.jsonl": "no chat template",
    "tool_calls.parquet": "no chat template",
}
"""Case → what the refusal says, with the built-in tokenizer."""


def call(*arguments: object):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


@pytest.mark.parametrize("path", sorted(CASES.iterdir()), ids=lambda path: path.name)
def test_every_case_is_shown_or_refused_in_one_line(path: Path) -> None:
    result = call(path)
    if path.name in REFUSED:
        assert isinstance(result.exception, BadInput) and "\n" not in str(result.exception)
        assert REFUSED[path.name] in str(result.exception) and f"{path.name}:1" in str(result.exception)
    else:
        assert result.exit_code == 0, result.output
        assert "pair 1  " in result.output and f"Next: dyn-probe record --data {path}" in result.output


def test_what_is_printed_is_plain_and_complete(tmp_path: Path) -> None:
    rows = [{"id": i, "question": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No."} for i in range(4)]
    rows.append({"id": 5, "question": None, "chosen": "a", "rejected": "b"})
    file = tmp_path / "my data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = call(file, "--max-length", 21, "--pairs", 1)
    lines = result.output.splitlines()
    assert lines[0] == f"{file}  5 rows, 4 pairs" and "\x1b" not in result.output
    assert lines[1] == "read as   question, chosen, rejected (user ← question)" and lines[2] == "not read  id"
    assert lines[3].endswith("built-in, conversations, written as “User: …” lines, since it has no chat template")
    assert any(line.startswith("warning: 4 of 4 pairs are longer than 21 tokens") for line in lines)
    assert "WARNING: 20 % of the rows are left out: 1 of 5 rows is left out (4 are used):" in lines
    assert f"  1 row: no prompt (question is null): {file}:5" in lines
    assert sum(line.startswith("pair ") for line in lines) == 1
    assert lines[-1] == f"Next: dyn-probe record --data '{file}' --max-length 21"


def test_strict_data_and_columns_are_those_of_record(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"f": "a", "chosen": "b", "rejected": "c"}\n{"f": "a", "chosen": "b", "rejected": "b"}\n')
    result = call(file, "--columns", "prompt=f")
    assert result.exit_code == 0 and result.output.endswith(f"record --data {file} --columns prompt=f\n")
    refused = call(file, "--columns", "prompt=f", "--strict-data")
    assert "chosen and rejected are identical" in str(refused.exception)


@pytest.mark.parametrize("arguments", [["nothing.jsonl"], ["no/such-data"], ["{file}", "--model", "no/such-model"]])
def test_a_wrong_name_is_one_line_on_standard_error(arguments: list[str], tmp_path: Path) -> None:
    given = [one.format(file=CASES / "array.json") for one in arguments]
    command = [sys.executable, "-m", "dyn_probe_cli", "data", *given]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("dyn-probe: ")
