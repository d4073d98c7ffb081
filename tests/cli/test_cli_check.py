"""``dyn-probe check``: its exit codes, its one line, its JSON; nothing heavy is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_frames import Options
from report_runs import write_run
from test_cli_without_torch import answers


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that is still going on, in which chosen falls."""
    return str(write_run(tmp_path_factory.mktemp("runs") / "run", Options(steps=30, pairs=24), "recording"))


def test_exit_codes_and_words(run: str) -> None:
    within, beyond, both, none, wrong, absent = answers(
        ["check", run, "--max-fall", "50"],
        ["check", run, "--max-fall", "0"],
        ["check", run, "--max-fall", "-1", "--max-rejected-rise", "-50", "--max-both-down", "1"],
        ["check", run],
        ["check", run, "--max-both-down", "50"],
        ["check", run + "-none", "--max-fall", "1"],
    )
    assert within["code"] == 0 and within["out"].startswith("within: ") and within["out"].count("\n") == 1
    assert "recording, step 29" in within["out"] and "--max-fall allows 50" in within["out"]
    assert beyond["code"] == 3 and beyond["out"].startswith("beyond: ") and "nats/token" in beyond["out"]
    assert both["code"] == 3 and both["out"].count("beyond: ") == 2 and "--max-both-down" not in both["out"]
    assert none["code"] == wrong["code"] == absent["code"] == 2
    assert "dyn-probe check RUN --max-fall 0.1" in none["err"] and "does not exist" in absent["err"]
    assert all(said["err"].count("\n") == 1 and said["out"] == "" for said in (none, wrong, absent))


def test_json_has_the_numbers_and_the_same_exit_code(run: str) -> None:
    within, beyond = answers(
        ["check", run, "--max-both-down", "1", "--json"], ["check", run, "--max-fall", "0", "--json"]
    )
    first, second = json.loads(within["out"]), json.loads(beyond["out"])
    assert (within["code"], first["within"], beyond["code"], second["within"]) == (0, True, 3, False)
    assert first["status"] == "recording" and first["last_step"] == 29
    (limit,) = second["limits"]
    assert limit["limit"] == "max_fall" and limit["most"] == 0 and limit["value"] > 0 and limit["within"] is False


def test_the_folder_is_left_as_it_is(run: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(run).rglob("*")}
    answers(["check", run, "--max-fall", "0"])
    assert {path: path.stat().st_mtime_ns for path in Path(run).rglob("*")} == before
