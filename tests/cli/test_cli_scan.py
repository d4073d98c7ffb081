"""Models that ``record`` leaves, and ``scan`` on them, as they are typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from dyn_probe_cli.app import main
from test_cli_without_torch import answers
from tiny_runs import uneven

from dyn_probe import load_trace
from dyn_probe.train.scanning import measured as scanning

TINY = [
    "--max-pairs", "12", "--pretrain-steps", "0", "--sft-steps", "0", "--steps", "4", "--batch-size", "3", "--device",
    "cpu", "--eval-fraction", "0", "--lr", "1e-3",
]  # fmt: skip


def typed(arguments: list[object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of ``dyn-probe ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["dyn-probe", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was typed, with two checkpoints kept; its options stand in a file and on the command line."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run.yaml").write_text("checkpoint-every: 1\nkeep-checkpoints: 2\nsave: true\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        assert typed(["record", "--config", folder / "run.yaml", "--out", folder / "run", *TINY], patch) == 0
    return folder / "run"


def test_record_says_where_the_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert typed(["record", "--save", "--out", out, *TINY], monkeypatch) == 0
    assert f"Model: {out / 'model'}\nNext: dyn-probe report {out}\n" in capsys.readouterr().out
    assert (out / "model" / "config.json").is_file() and not (out / "checkpoints").exists()
    assert typed(["record", "--model", out / "model", "--out", tmp_path / "next", *TINY], monkeypatch) == 0
    assert "Model:" not in capsys.readouterr().out


@pytest.mark.usefixtures("unrendered")
def test_a_run_is_scanned_and_its_trace_is_read_by_the_other_commands(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "scan", uneven(tmp_path, 5)
    command = ["scan", run, "--data", data, "--out", out, "--beta", "0.5", "--device", "cpu"]
    assert typed(command, monkeypatch) == 0
    said = capsys.readouterr()
    assert f"Next: dyn-probe report {out}" in said.out
    assert f"checkpoints at the steps 3, 4; reference: {run / 'checkpoints' / 'checkpoint-3'}" in " ".join(
        said.err.split()
    )
    trace = load_trace(out)
    assert trace.manifest["command"].startswith(f"dyn-probe scan {run}")
    assert trace.pairs.groupby("step").size().to_dict() == {3: 5, 4: 5}
    assert trace.pairs.query("step == 3")["pull_chosen"].to_list() == pytest.approx([0.25] * 5, rel=1e-4)
    for other in (["summary", out], ["pairs", out, "--format", "json"], ["report", out]):
        assert typed(other, monkeypatch) == 0
        assert capsys.readouterr().out
    assert (out / "report" / "report.html").is_file()
    assert typed(command, monkeypatch) == 0
    assert f"nothing is missing in {out}" in " ".join(capsys.readouterr().err.split())


def test_a_scan_that_is_stopped_says_how_to_go_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scanning, "measure", stop)
    command = ["scan", run, "--data", uneven(tmp_path, 5), "--out", tmp_path / "scan", "--device", "cpu"]
    assert typed(command, monkeypatch) == 130
    assert "Stopped by Ctrl-C; the same command continues with the missing checkpoints" in capsys.readouterr().err


def test_what_is_wrong_is_said_before_torch_is_loaded(run: Path, tmp_path: Path) -> None:
    said = answers(
        ["scan", str(run)],
        ["scan", "./nowhere", "--data", "sentiment:long-suffix"],
        ["scan", str(tmp_path), "--data", "sentiment:long-suffix"],
        ["scan", str(run), "--data", "nothing.jsonl"],
        ["scan", str(run), "--data", "sentiment:long-suffix", "--batch-size", "0"],
        ["record", "--keep-checkpoints", "some"],
    )
    wanted = (
        "a scan needs the pairs that it measures; write --data",
        "no such model folder: './nowhere'",
        "holds no model and no checkpoint-STEP; wanted a folder of save_pretrained",
        "no such file: nothing.jsonl",
        "batch-size must be a whole number of at least 1; got 0",
        "keep-checkpoints must be a whole number of at least 0 or all; got 'some'",
    )
    for answer, words in zip(said, wanted, strict=True):
        assert answer["code"] == 2 and words in answer["err"], answer
