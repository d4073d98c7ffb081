"""Lines to the user of a training that somebody else runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dyn_probe.attach.user_lines import say


def test_a_line_does_not_stick_to_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    tqdm = pytest.importorskip("tqdm.std")
    with tqdm.tqdm(total=4, file=sys.stderr) as bar:
        bar.update(2)
        say("recorded")
        bar.update(2)
    shown = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert "dyn-probe: recorded" in shown and any("4/4" in line for line in shown)


def test_without_a_bar_nothing_of_the_process_is_decided() -> None:
    code = (
        "import multiprocessing, tqdm.std\n"
        "from dyn_probe.attach.user_lines import say\n"
        "say('recorded')\n"
        "multiprocessing.set_start_method('spawn')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "dyn-probe: recorded\n")


def test_without_progress_bars_it_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tqdm.std", raising=False)
    monkeypatch.setenv("RANK", "1")
    say("recorded")
    say("recorded", everywhere=True)
    assert capsys.readouterr().err == "dyn-probe: recorded (process 1)\n"
