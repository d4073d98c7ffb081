"""Reading starts at once: these commands run in a process in which torch and its like cannot be imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dyn_probe_cli.app import COMMANDS
from report_frames import Options
from report_runs import write_run

HEAVY = ("torch", "transformers", "datasets", "accelerate")

SCRIPT = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %(heavy)r:
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Refuse())
from dyn_probe_cli.app import main

for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["dyn-probe", *arguments]
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except ImportError as error:
            code, out = -1, io.StringIO(str(error))
    print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}))
"""


def answers(*commands: list[str]) -> list[dict]:
    """Exit code, standard output and error of each command, run one after the other without heavy packages."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT % {"heavy": HEAVY}, json.dumps(commands)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A recorded run with gate and probe responses."""
    return str(write_run(tmp_path_factory.mktemp("runs") / "run", Options(steps=20, gate=True, mass=True)))


def test_every_help_is_printed_without_heavy_packages() -> None:
    names = [command.__name__.rstrip("_") for command in COMMANDS]
    for name, said in zip(["", *names], answers(["--help"], *([name, "--help"] for name in names)), strict=True):
        assert said["code"] == 0 and "Usage: dyn-probe" in said["out"] and name in said["out"], said


def test_methods_are_listed_and_explained_without_heavy_packages() -> None:
    listed, dpo, gate, wrong = answers(
        ["methods"], ["methods", "dpo"], ["methods", "gate-seq"], ["methods", "gate-sek"]
    )
    assert listed["code"] == dpo["code"] == gate["code"] == 0
    assert "simpo" in listed["out"] and "−log σ(β(h_w − h_l))" in dpo["out"] and "tau=0.1" in gate["out"]
    assert wrong["code"] == 2 and "did you mean gate-seq?" in wrong["err"]


def test_a_run_is_read_and_reported_without_heavy_packages(run: str, tmp_path: Path) -> None:
    page, copy = tmp_path / "page", str(shutil.copytree(run, tmp_path / "copy"))
    summary, pairs, report, several, both, twice = answers(
        ["summary", run], ["pairs", run, "--format", "csv"], ["report", run, "--out", str(page)],
        ["report", run, copy, "--out", str(tmp_path / "both")], ["summary", run, copy], ["summary", run, run],
    )  # fmt: skip
    assert [said["code"] for said in (summary, pairs, report, several)] == [0, 0, 0, 0], (summary, pairs, report)
    assert both["code"] == 0 and "Which run is healthier cannot be determined" in both["out"], both
    assert twice["code"] == 2 and "the same folder 2 times" in twice["err"], twice
    assert "Chosen and rejected" in summary["out"] and pairs["out"].startswith("pair_id,")
    assert (page / "report.html").is_file() and (tmp_path / "both" / "report.html").is_file()


def test_the_refusal_can_be_met() -> None:
    (said,) = answers(["heatmap", "built-in", "--data", "sentiment:long-suffix"])
    assert said["code"] == -1 and "is not to be imported" in said["out"]
