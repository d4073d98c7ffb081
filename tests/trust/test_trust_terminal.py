"""Recorded texts in the terminal: what steers one stands as an escape, and no CSV cell is a formula."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from dyn_probe_cli.app import main
from trust.door_trace import rows_of

from dyn_probe.errors import escaped, on_one_line
from dyn_probe.trace.writer import TraceWriter

EVIL = "=HYPERLINK(1)\x1b[2J\u202e\x9b31m"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal") / "run"
    with TraceWriter(folder, {"command": EVIL, "model": {"name": EVIL}, "objective": {"name": "dpo"}}) as writer:
        writer.add("pairs", rows_of("pairs", range(3)))
        writer.add("examples", [{"pair_id": pair, "prompt": EVIL, "chosen": EVIL, "rejected": "-1+1"} for pair in "ab"])
    return folder


def said(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["dyn-probe", arguments[0], str(run), *arguments[1:]])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["summary"], ["pairs"], ["pairs", "--format", "csv"], ["pairs", "--format", "json"]]
)
def test_nothing_steers_the_terminal(run: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch):
    shown = said(run, capsys, monkeypatch, *arguments)
    assert all(one.isprintable() or one == "\n" for one in shown)
    assert ("\\x1b[2J" in shown and "\\u202e" in shown) or "\\u001b[2J" in shown


def test_no_cell_of_pairs_is_a_formula(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    rows = list(csv.DictReader(io.StringIO(said(run, capsys, monkeypatch, "pairs", "--format", "csv"))))
    assert len(rows) == 2 and all(row["chosen"].startswith("'=HYPERLINK(1)\\x1b") for row in rows)
    assert all(row["rejected"] == "'-1+1" for row in rows) and float(rows[0]["logp_chosen"]) < 0


def test_json_holds_the_texts_as_they_are(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    rows = json.loads(said(run, capsys, monkeypatch, "pairs", "--format", "json"))
    assert [row["chosen"] for row in rows] == [EVIL, EVIL]


def test_what_is_kept_stays() -> None:
    assert escaped("a\tb\n\u2066é中", kept="\n") == "a\\tb\n\\u2066é中"
    assert on_one_line("a\n b\x07") == "a b\\x07"
