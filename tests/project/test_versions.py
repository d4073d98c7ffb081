"""Packages that are too old are refused by name, before anything of them is imported."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dyn_probe import errors
from dyn_probe.errors import FLOORS, NEWEST, BadInput, check_versions

ROOT = Path(__file__).parents[2]


def test_the_floors_are_those_of_the_metadata() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for name, floor in FLOORS.items():
        [entry] = [line for line in wanted if line.partition(">=")[0] == name]
        assert (*map(int, entry.partition(">=")[2].split(".")), 0)[:2] == floor


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"torch": "2.10.1+cpu"}, "does not work with torch 2.10.1+cpu; write: pip install 'torch>=2.11'"),
        ({"pandas": "2.1.4", "pyarrow": "16.1.0"}, "pandas 2.1.4, pyarrow 16.1.0; .*'pandas>=2.2' 'pyarrow>=17.0'"),
        ({"transformers": "4.57.3"}, "transformers 4.57.3; write: pip install 'transformers>=5.0'"),
    ],
)
def test_older_packages_are_named(versions: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "version", lambda name: versions.get(name, "99.0"))
    with pytest.raises(BadInput, match=words.replace("+", r"\+")):
        check_versions()


def test_newer_ones_are_said_once_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"torch": "2.99.0+cpu", "pandas": "3.1.9", "pyarrow": "26.0.1", "transformers": "6.0.dev0"}
    monkeypatch.setattr(errors, "version", found.__getitem__)
    monkeypatch.setattr(errors, "_SAID", set())
    with pytest.warns(
        RuntimeWarning, match="untested with torch 2.99.0.cpu .up to 2.13., transformers 6.0.dev0"
    ) as seen:
        check_versions()
        check_versions()
    assert len(seen) == 1 and "pandas" not in str(seen[0].message)


def test_the_environment_of_the_tests_is_a_tested_one(recwarn: pytest.WarningsRecorder) -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for name, newest in NEWEST.items():
        assert (*map(int, pinned[name].split(".")[:2]),) <= newest
    check_versions()
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:untested with")
def test_newer_ones_and_missing_ones_are_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "torch":
            raise errors.PackageNotFoundError
        return "10.0.dev3"

    monkeypatch.setattr(errors, "version", lambda name: "18.0" if name == "pyarrow" else version(name))
    check_versions()


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "pandas-1.5.0.dist-info").mkdir()
    (tmp_path / "pandas-1.5.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: pandas\nVersion: 1.5.0\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from dyn_probe_cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "methods"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "dyn-probe: dyn-probe does not work with pandas 1.5.0; write: pip install 'pandas>=2.2'\n"
