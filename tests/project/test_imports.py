"""Who may import whom: the table below is the architecture. Downwards only, and reading needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dyn_probe

ROOT = Path(__file__).resolve().parents[2]

_BELOW_PROBE = ("pairs", "engine", "metric", "objectives", "mass", "entanglement", "trace")
_BELOW_TRAIN = ("probe", "data", "objectives", "mass", "pairs", "engine", "metric", "trace", "token_analysis")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": (),
    "pairs": ("errors",),
    "vocabulary": ("errors",),
    "engine": ("errors", "pairs"),
    "metric": ("errors", "engine", "pairs"),
    "objectives": ("errors", "pairs"),
    "entanglement": ("errors",),
    "trace": ("errors", "entanglement"),
    "token_analysis": ("errors", "trace"),
    "mass": ("errors", "pairs", "trace", "vocabulary"),
    "probe": ("errors", *_BELOW_PROBE),
    "data": ("errors", "pairs", "vocabulary"),
    "attach": ("errors", "probe", "data", "pairs", "objectives", "metric", "mass", "trace"),
    "train": ("errors", *_BELOW_TRAIN),
    "report": ("errors", "trace", "entanglement", "token_analysis", "objectives", "mass"),
    "studies": ("errors", *_BELOW_TRAIN, "train", "report", "entanglement"),
}
"""Room → rooms that its files may import (besides itself): every edge there may be."""
MAY_IMPORT["cli"] = tuple(MAY_IMPORT)

WITHOUT_TORCH = ("errors", "trace", "report", "entanglement", "token_analysis")
"""Rooms that never import torch, neither themselves nor through what they import."""

TABLES_ALONE = ("dyn_probe.objectives", "dyn_probe.objectives.describe")
"""The tables of objectives and shapings: read without torch, though the room computes with it."""


def room_of(module: str) -> str | None:
    """The room that a module lives in; None for modules that are not ours, "" for the package itself."""
    head, *rest = module.split(".")
    if head == "dyn_probe_cli":
        return "cli"
    if head != "dyn_probe":
        return None
    return rest[0] if rest else ""


def imported_modules(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import in ``source``, wherever in the file it stands."""
    parent = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else parent[: len(parent) - node.level + 1]
            target = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, _home(target, alias.name)) for alias in node.names)


def _home(module: str, name: str) -> str:
    """Where ``name`` comes from in ``from module import name``; the package's own names load lazily."""
    if module == "dyn_probe":
        return dyn_probe._HOMES.get(name, module if name == "__version__" else f"{module}.{name}")
    return module


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of ``source`` that the table forbids to ``module``."""
    room = room_of(module)
    assert room, f"{module} lies in no room"
    if room not in MAY_IMPORT:
        return [f"{module}: no row for room {room!r} in MAY_IMPORT; rows: {', '.join(sorted(MAY_IMPORT))}"]
    return [
        f"{module}:{line} imports {target}; {room} may import {sorted(MAY_IMPORT[room])}"
        for line, target in imported_modules(source, module, is_package)
        if (wanted := room_of(target)) and wanted != room and wanted not in MAY_IMPORT[room]
    ]


def our_files() -> list[tuple[str, Path]]:
    """(module name, path) of every file of the two packages except the lazy front door."""
    found = []
    for folder, package in ((ROOT / "dyn_probe", "dyn_probe"), (ROOT / "cli", "dyn_probe_cli")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])
            if name != "dyn_probe":
                found.append((name, path))
    return found


def test_imports_go_downwards() -> None:
    found = [
        violation
        for module, path in our_files()
        for violation in violations(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dyn_probe.errors", "import dyn_probe.pairs"),
        ("dyn_probe.objectives.losses", "from dyn_probe.engine.tap import Tap"),
        ("dyn_probe.engine.products", "from dyn_probe.objectives import OBJECTIVES"),
        ("dyn_probe.engine.kinds.linear", "from dyn_probe.probe import Probe"),
        ("dyn_probe.engine.kinds.linear", "from dyn_probe import Probe"),
        ("dyn_probe.metric.step_reader", "from dyn_probe.probe import Probe"),
        ("dyn_probe.trace.reader", "def f():\n    from ..pairs import PairBatch"),
        ("dyn_probe.report.build", "from dyn_probe.engine import row_gram"),
        ("dyn_probe.report.build", "from dyn_probe import probe"),
        ("dyn_probe.data.models", "from dyn_probe.mass import encode_probes"),
        ("dyn_probe.pairs", "from dyn_probe.data.records import PreferencePair"),
        ("dyn_probe.train.loop", "import dyn_probe_cli.app"),
        ("dyn_probe.train.loop", "from dyn_probe.report.build import build_report"),
        ("dyn_probe.newroom.file", "import math"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dyn_probe.probe", "from dyn_probe.engine import row_gram\nfrom dyn_probe import __version__"),
        ("dyn_probe.report.build", "from ..trace.reader import load_trace\nfrom .verdicts import verdicts"),
        ("dyn_probe.trace.reader", "from dyn_probe.errors import TraceError\nimport pandas"),
        ("dyn_probe_cli.record", "from dyn_probe.train.loop import record"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert not violations(source, module)


def loaded_by(modules: list[str], names: tuple[str, ...] = ("torch", "transformers")) -> list[str]:
    """Which of ``names`` a fresh interpreter holds after importing ``modules``."""
    script = (
        "import importlib, sys\n"
        f"for module in {modules!r}: importlib.import_module(module)\n"
        f"print(*[name for name in {names!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_reading_and_reporting_never_load_torch() -> None:
    modules = ["dyn_probe", *(name for name, _ in our_files() if room_of(name) in WITHOUT_TORCH), *TABLES_ALONE]
    assert loaded_by(modules) == []


def test_the_torch_check_can_fail() -> None:
    assert "torch" in loaded_by(["dyn_probe.pairs"])


def test_every_public_name_loads_from_where_the_front_door_says() -> None:
    missing = [name for name in dyn_probe.__all__ if not hasattr(dyn_probe, name)]
    assert not missing


def test_the_table_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    for room, others in MAY_IMPORT.items():
        if room not in ("errors", "cli"):
            named = ", ".join(f"`{other}`" for other in others if other != "errors") or "–"
            assert f"| `{room}` | {named} |" in page
