"""The project's own files agree with each other: packages, pins, version, changelog, commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import dyn_probe

ROOT = Path(__file__).resolve().parents[2]
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def requirement_name(requirement: str) -> str:
    """The normalised distribution name of one requirement line."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]).lower()


def pins() -> dict[str, str]:
    """Distribution → exact version, from the constraints file."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_package_is_listed_in_the_metadata() -> None:
    folders = {"dyn_probe": ROOT / "dyn_probe", "dyn_probe_cli": ROOT / "cli"}
    present = {
        ".".join([package, *init.parent.relative_to(folder).parts])
        for package, folder in folders.items()
        for init in folder.rglob("__init__.py")
    }
    assert present == set(METADATA["tool"]["setuptools"]["packages"])


def test_every_dependency_is_pinned() -> None:
    project = METADATA["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    wanted.append("setuptools")
    missing = {requirement_name(r) for r in wanted} - set(pins()) - {project["name"]}
    assert not missing


def test_pins_are_exact_and_plain() -> None:
    assert all(re.fullmatch(r"\d+(\.\w+)*", version) for version in pins().values())


def test_version_is_the_same_everywhere_and_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert METADATA["project"]["version"] == dyn_probe.__version__
    assert f"## [{dyn_probe.__version__}]" in changelog or "## [Unreleased]" in changelog


def test_readme_names_only_make_targets_that_exist() -> None:
    named = set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))
    assert named == {"demo", "test"}
    assert named <= targets


def test_continuous_integration_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert set(re.findall(r"\bmake (lint|test|demo)\b", script)) == {"lint", "test", "demo"}
