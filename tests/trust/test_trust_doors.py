"""Bad input at every door, in small numbers; ``make trust`` tries many more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from trust import door_data, door_model, door_options, door_trace
from trust.doors import attempt, command, new_tally
from trust.tally import Tally

from dyn_probe.errors import BadInput

CASES: dict[str, tuple[Callable[..., Tally], int]] = {
    "files": (door_trace.fuzz_files, 19),
    "run.json": (door_trace.fuzz_manifest, 60),
    "tables": (door_trace.fuzz_tables, 19),
    "options": (door_options.fuzz_values, 150),
    "command line": (door_options.fuzz_command_line, 12),
    "config file": (door_options.fuzz_config, 60),
    "data": (door_data.fuzz_rows, 40),
    "models": (door_model.fuzz_model_folder, 4),
    "checkpoints": (door_model.fuzz_checkpoints, 20),
}


@pytest.mark.parametrize("door", CASES)
def test_no_bad_input_ends_in_a_traceback(door: str, tmp_path: Path) -> None:
    fuzz, count = CASES[door]
    more = {"deep_every": 10**6} if fuzz.__module__ == "trust.door_trace" else {}
    tally = fuzz(tmp_path, count, seed=7, **more)
    assert tally.holds, tally.failures
    assert tally.tried >= count - 5


def test_a_traceback_and_an_unclear_refusal_are_seen() -> None:
    tally = new_tally("a door")

    def refuse(message: str) -> None:
        raise BadInput(message)

    attempt(tally, "one", lambda: {}["nothing"])
    attempt(tally, "two", lambda: refuse("\x1b[2J the screen is wiped"))
    attempt(tally, "three", lambda: refuse("wanted a number; got a text"))
    assert tally.zero == {"tracebacks": 1, "unclear refusals": 1} and not tally.holds
    assert "KeyError" in tally.failures[0] and tally.facts["refused"] == "2"


def test_so_are_those_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = new_tally("commands")
    command(tally, "refused", ["summary", "no-such-folder"])
    assert tally.holds and tally.facts["refused"] == "1"
    monkeypatch.setattr("dyn_probe.trace.reader.read_manifest", lambda path: {}["nothing"])
    command(tally, "fails", ["summary", "no-such-folder"])
    assert tally.zero["tracebacks"] == 1
