"""What docs/loop.md prints can be typed: its commands, its YAML file, and what it says of single options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from dyn_probe_cli.app import app
from typer.testing import CliRunner

from dyn_probe.objectives import OBJECTIVES
from dyn_probe.train import grid, loop
from dyn_probe.train.objective import Method
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.options.config_file import make_config

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "loop.md").read_text(encoding="utf-8")
SHOWN = [
    line
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith(("dyn-probe record", "dyn-probe grid"))
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The YAML file of the page, as run.yaml."""
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("line", SHOWN)
def test_every_command_of_the_page_is_understood(line: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    asked: list[Any] = []

    def stop(config: Any, *_: object, **__: object) -> None:
        asked.append(config)
        raise SystemExit

    monkeypatch.setattr(loop, "record", stop)
    monkeypatch.setattr(grid, "train_grid", stop)
    CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
    (found,) = asked
    configs = [found] if isinstance(found, RunConfig) else list(found.values())
    assert configs and all(Method.of(config) for config in configs)


def test_the_page_shows_both_commands() -> None:
    assert len(SHOWN) > 4 and {line.split()[1] for line in SHOWN} == {"record", "grid"}


def test_the_yaml_file_is_a_configuration(file: Path) -> None:
    config = make_config(file)
    assert Method.of(config).hyper["beta"] == 0.05 and config.shaping == ("gate-seq:form=gradient",)
    assert config.pairs_per_step == 8 and config.lr == 2e-4 and not config.realised


def test_the_page_names_every_objective_without_a_reference() -> None:
    free = [f"`{row.name}`" for row in OBJECTIVES.values() if not row.needs_reference and not row.stage]
    assert f"- {', '.join(free[:-1])} and {free[-1]} use no reference" in PAGE
