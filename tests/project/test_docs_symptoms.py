"""The pages by symptom: one screen each, with a run that can be typed, a picture, and a way to them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from dyn_probe_cli.app import app
from typer.testing import CliRunner

from dyn_probe.train import loop

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SYMPTOMS = (
    "both-log-probs-fall",
    "gradient-norm",
    "it-repeats-itself",
    "accuracy-stuck",
    "which-pairs",
    "which-beta",
)
MOST_WORDS = 420
"""What fits a screen beside a picture: commands, quoted verdicts and tables counted."""


def text_of(name: str) -> str:
    """The page."""
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """The lines of its console blocks, without what stands behind a #."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("name", SYMPTOMS)
def test_a_page_is_one_screen_with_run_and_picture(name: str) -> None:
    text = text_of(name)
    pictures = re.findall(r"!\[[^\]]{20,}\]\((images/[\w-]+\.png)\)", text)
    assert pictures and all((DOCS / picture).is_file() for picture in pictures)
    assert any(line.startswith("dyn-probe record --out runs/") for line in commands(text))
    assert text.index("```console") < text.index("![") and len(text.split()) < MOST_WORDS
    assert re.search(r"^> ", text, re.MULTILINE) or "```text" in text  # what the run said, quoted


@pytest.mark.parametrize("name", SYMPTOMS)
def test_a_page_is_found_from_readme_and_tour(name: str) -> None:
    assert f"](docs/{name}.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"]({name}.md)" in text_of("index")


@pytest.mark.parametrize(
    "line", [line for name in SYMPTOMS for line in commands(text_of(name)) if line.startswith("dyn-probe record")]
)
def test_every_run_of_a_page_can_be_typed(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def stop(config: Any, *_: object, **__: object) -> None:
        asked.append(config)
        raise SystemExit

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "record", stop)
    CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
    assert len(asked) == 1 and asked[0].max_pairs in (120, 200)


def test_every_other_command_of_a_page_is_known() -> None:
    known = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    named = {line.split()[1] for name in SYMPTOMS for line in commands(text_of(name)) if line}
    assert {"record", "report", "summary", "pairs", "check", "scan"} <= named
    assert named <= {name.replace("_", "-") for name in known}
