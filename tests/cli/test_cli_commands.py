"""The commands as a new user meets them: what they print, what they refuse, and how fast they start."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from dyn_probe_cli.app import COMMANDS, app, main
from forked import Forked
from loaded import run_and_list
from loop_runs import run

from dyn_probe.objectives import OBJECTIVES, SHAPINGS, describe
from dyn_probe.trace.reader import load_trace
from dyn_probe.train.options.config import OPTIONS

QUICK = [
    "--max-pairs",
    "60",
    "--pretrain-steps",
    "0",
    "--sft-steps",
    "2",
    "--steps",
    "2",
    "--batch-size",
    "4",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run's folder."""
    return run(tmp_path_factory.mktemp("runs") / "my run").path


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of ``dyn-probe ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["dyn-probe", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def refusal(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a command that cannot be carried out."""
    assert call(arguments, monkeypatch) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("dyn-probe: ")
    return said.err


def loaded_after(arguments: list[str]) -> list[str]:
    """Which heavy packages ``dyn-probe ARGUMENTS`` has loaded at its end."""
    return run_and_list(arguments)[2]


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["record", "--help"], ["report", "--help"], ["--version"]], ids=" ".join
)
def test_help_starts_without_heavy_imports(arguments: list[str]) -> None:
    assert loaded_after(arguments) == []


def test_reading_commands_never_load_torch(recorded: Path) -> None:
    for arguments in (["summary", str(recorded)], ["pairs", str(recorded)], ["methods"], ["methods", "kto"]):
        assert "torch" not in loaded_after(arguments)


def test_that_check_can_fail(recorded: Path) -> None:
    assert "torch" in loaded_after(["record", "--data", str(recorded / "run.json")])
    assert "torch" not in loaded_after(["record", "--objective", "dppo"])


def test_every_option_stands_in_the_help_with_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert call(["record", "--help"], monkeypatch) == 0
    text = "".join(capsys.readouterr().out.split())  # a line may end in the hyphen of a word
    for option in OPTIONS.values():
        assert f"--{option.name}" in text and "".join(option.help.split()) in text
    assert "--configFILE.yaml" in text and "--realised/--no-realised" in text


def test_record_trains_and_names_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my run"
    assert call(["record", "--out", str(out), *QUICK, "--objective", "ipo", "--set", "average=false"], monkeypatch) == 0
    assert capsys.readouterr().out == f"Next: dyn-probe report '{out}'\n"
    trace = load_trace(out)
    assert trace.closed and len(trace.pairs) == 8
    assert trace.manifest["objective"]["name"] == "ipo" and trace.manifest["objective"]["hyper"]["average"] is False


def test_the_command_line_wins_over_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"out: {tmp_path / 'run'}\nsteps: 5\nbatch-size: 3\nrealised: false\nobjective: simpo\n")
    assert call(["record", *QUICK[:6], "--config", str(file), "--steps", "1"], monkeypatch) == 0
    trace = load_trace(tmp_path / "run")
    assert len(trace.pairs) == 3 and trace.manifest["objective"]["name"] == "simpo"
    assert trace.pairs["realised_delta_chosen"].isna().all()


def test_nothing_is_overwritten_without_force(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (recorded / "run.json").read_bytes()
    assert "--force" in refusal(["record", "--out", str(recorded), *QUICK], monkeypatch, capsys)
    assert (recorded / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recrod"], "Did you mean 'record'"),
        (["record", "--stpes", "3"], "--steps"),
        (["record", "--steps", "some"], "'--steps'"),
        (["record", "--steps", "0"], "steps must be a whole number of at least 1; got 0"),
        (["record", "--objective", "dppo"], "unknown objective 'dppo'"),
        (["record", "--data", "sentiment:long-sufix"], "did you mean sentiment:long-suffix?"),
        (["record", "--data", "nothing.jsonl"], "no such file: nothing.jsonl"),
        (["record", "--config", "nothing.yaml"], "no such file: nothing.yaml"),
        (["record", "--set", "beta"], "set must be NAME=VALUE"),
        (["record", "--resume"], "--resume needs the folder of a run"),
        (["report"], "Missing argument"),
        (["report", "nothing"], "nothing does not exist"),
        (["summary", "nothing"], "nothing does not exist"),
        (["pairs", "nothing"], "nothing does not exist"),
        (["methods", "gate-sek"], "did you mean gate-seq?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_one_line_and_leaves_nothing_behind(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(arguments, monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unrendered")
def test_report_writes_one_page_and_names_it(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["report", str(recorded), "--out", str(tmp_path / "page")], monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"Report: {tmp_path / 'page' / 'report.html'}", f"Next: dyn-probe summary '{recorded}'"]
    assert "<html" in (tmp_path / "page" / "report.html").read_text(encoding="utf-8")


def test_summary_says_what_happened(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["summary", str(recorded)], monkeypatch) == 0
    said = capsys.readouterr().out
    assert "log-prob of chosen" in said and "cosine" in said and said.endswith(f"Next: dyn-probe pairs '{recorded}'\n")


def test_pairs_are_ranked_and_exported_with_every_column(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pairs", str(recorded), "--by", "cosine", "--top", "5"]
    assert call(arguments, monkeypatch) == 0
    table = capsys.readouterr().out
    assert call([*arguments, "--format", "csv"], monkeypatch) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert call([*arguments, "--format", "json"], monkeypatch) == 0
    objects = json.loads(capsys.readouterr().out)
    cosines = [float(row["grad_cosine"]) for row in rows]
    assert len(rows) == 5 and cosines == sorted(cosines, reverse=True)
    assert [row["pair_id"] for row in rows] == [row["pair_id"] for row in objects]
    assert all(row["pair_id"] in table and row["prompt"].endswith("Sentiment:") for row in rows)


def test_a_wrong_ranking_or_format_prints_the_choices(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "excess, cosine" in refusal(["pairs", str(recorded), "--by", "luck"], monkeypatch, capsys)
    assert "table, csv, json" in refusal(["pairs", str(recorded), "--format", "xls"], monkeypatch, capsys)


def test_methods_lists_every_objective_and_shaping(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert call(["methods"], monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    for row in describe():
        line = next(line for line in lines if line.split()[:1] == [row.name])
        assert row.formula in line and row.paper in line
        below = lines[lines.index(line) :][: max(1, len(row.defaults))]
        assert all(default in text.split() for default, text in zip(row.defaults, below, strict=False))


def test_methods_puts_the_warm_up_stages_under_a_heading_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["methods"], monkeypatch) == 0
    said = capsys.readouterr().out
    objectives, found, rest = said.partition("Warm-up stages (--sft-objective NAME)")
    stages, also_found, _ = rest.partition("Shapings (--shaping NAME)")
    assert said.startswith("Objectives (--objective NAME)") and found and also_found
    assert "sft" not in objectives and {"sft", "extended_sft"} <= set(stages.split())


def test_methods_fits_a_hundred_columns_without_breaking_a_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert call(["methods"], monkeypatch) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100 + 2  # two letters carry a combining bar
    assert all(text in said.split() for row in describe() for text in (row.name, *row.defaults))
    letters = "".join(said.split())
    assert all(word in letters for row in describe() for word in re.findall(r"\d{4}\.\d{5}", row.paper))


@pytest.mark.parametrize("name", [*OBJECTIVES, *SHAPINGS])
def test_methods_explains_each(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = OBJECTIVES.get(name) or SHAPINGS[name]
    assert call(["methods", name], monkeypatch) == 0
    said = capsys.readouterr().out
    assert row.formula in said and row.dynamics in said and all(f"{key}=" in said for key in row.defaults)


def test_every_command_says_what_it_does() -> None:
    assert {"record", "report", "summary", "pairs", "methods"} <= {command.__name__ for command in COMMANDS}
    assert all(command.__doc__ and command.__doc__.strip().endswith(".") for command in COMMANDS)
    assert len(app.registered_commands) == len(COMMANDS)


def test_ctrl_c_keeps_the_trace_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    script = "from dyn_probe_cli.app import main; main()"
    options = ["--out", str(out), *QUICK, "--steps", "100000", "--warmup-steps", "5"]
    process = Forked("-c", script, "record", *options, before=_by_default)
    deadline = time.monotonic() + 300  # waits for a row; the limit only ends a run that hangs
    while time.monotonic() < deadline and not _has_rows(out):
        assert process.poll() is None, process.ended()
        time.sleep(0.2)
    assert _has_rows(out), "no row was recorded"
    process.send_signal(signal.SIGINT)
    done = process.ended()
    assert done.returncode == 130 and done.stdout == f"Next: dyn-probe report {out}\n"
    assert "what was recorded is kept" in done.stderr and "Traceback" not in done.stderr
    trace = load_trace(out)
    assert trace.manifest["status"] == "stopped" and len(trace.pairs) > 0


def _by_default() -> None:
    """A background job inherits SIGINT as ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _has_rows(out: Path) -> bool:
    return (out / "run.json").exists() and len(load_trace(out).pairs) > 0
