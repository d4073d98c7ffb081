"""Methods declare what they need in their own rows: outside the room of objectives no code knows one by its name.

The names of objectives, shapings and warm-up stages may stand where ALLOWED says; everywhere else a string that is one
fails the test, whatever is done with it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from dyn_probe.objectives import OBJECTIVES, SHAPINGS

ROOT = Path(__file__).resolve().parents[2]
NAMES = frozenset({*OBJECTIVES, *SHAPINGS})

EVERY = frozenset(NAMES)
ALLOWED: tuple[tuple[str, frozenset[str], str], ...] = (
    ("dyn_probe/objectives/*", EVERY, "their own room"),
    ("dyn_probe/train/study_*.py", EVERY, "a study trains what its paper trained"),
    ("dyn_probe/report/study_*.py", EVERY, "a study's page judges what its paper claims"),
    ("dyn_probe/studies/*", EVERY, "a study trains what its paper trained"),
    ("dyn_probe/studies/published.py", EVERY, "the published table"),
    ("dyn_probe/attach/*", EVERY, "the table of a trainer's losses"),
    ("dyn_probe/train/options/config.py", frozenset({"dpo", "sft", "extended_sft"}), "defaults and choices of options"),
    ("dyn_probe/train/grid.py", EVERY, "METHODS: what is compared where nothing is named"),
    ("dyn_probe/report/first_screen/remedy_rows.py", EVERY, "the table of remedies"),
    ("dyn_probe/report/replay/*_forms.py", EVERY, "closed forms of each row's pulls, for a report without torch"),
    ("dyn_probe/report/replay/walk.py", frozenset({"pairwise-normalised"}), "the form that follows from norms"),
    ("dyn_probe/report/first_screen/fix_table.py", frozenset({"sft"}), "TRL's name of its likelihood term"),
    ("dyn_probe/report/verdicts/*", frozenset({"sft"}), "a key of the remedies' advice"),
)
"""Files, names that may stand in them, and why."""

LISTED = {"dyn_probe/train/grid.py": "METHODS"}
"""Files in which the names may stand in one table alone: its name."""

FORM = re.compile(r"([a-z_0-9-]+)(?:[:+].*)?")


def named(text: str) -> str | None:
    """The method that a string names, alone or as NAME:OPTION=VALUE or NAME+SHAPING; None if it names none."""
    match = FORM.fullmatch(text)
    return match[1] if match and match[1] in NAMES else None


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of every string constant, docstrings included: none of these is a method's bare name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def tables(tree: ast.Module, name: str) -> list[ast.stmt]:
    """The statements of a module that assign to ``name``."""
    return [
        node
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and any(
            isinstance(t, ast.Name) and t.id == name for t in getattr(node, "targets", [getattr(node, "target", 0)])
        )
    ]


def found_in(source: str, file: str) -> list[str]:
    """Names of methods in the file that may not stand there."""
    tree = ast.parse(source)
    allowed = frozenset().union(*(names for pattern, names, _ in ALLOWED if fnmatch(file, pattern)))
    listed = {line for node in tables(tree, LISTED.get(file, "")) for line, _ in strings(node)}
    if file in LISTED:
        allowed = frozenset()
    return [
        f"{file}:{line} names {name}: declare what it stands for in the rows of OBJECTIVES or SHAPINGS"
        for line, text in strings(tree)
        if (name := named(text)) and name not in allowed and line not in listed
    ]


def library_files() -> Iterator[tuple[str, str]]:
    """(path, source) of every file of the library and the command line."""
    for folder in ("dyn_probe", "cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def test_no_code_outside_their_room_knows_a_method_by_its_name() -> None:
    assert [one for file, source in library_files() for one in found_in(source, file)] == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("dyn_probe/train/loop.py", 'if method.name == "kto":\n    pass'),
        ("dyn_probe/train/setup.py", 'mask = method.shaping("token-mask")'),
        ("dyn_probe/train/objective.py", 'LIVE = ("kto", "rdpo")'),
        ("dyn_probe/report/page_data.py", 'match name:\n    case "simpo":\n        pass'),
        ("dyn_probe/report/verdicts/cases.py", 'ok = name in {"dpo:beta=0.1"}'),
        ("dyn_probe/train/options/config.py", 'kind = "simpo"'),
        ("dyn_probe/train/grid.py", 'METHODS = ("dpo",)\nREMEDY = "pairwise-normalised"'),
        ("cli/record.py", 'name.startswith("dpo+gate-seq")'),
    ],
)
def test_a_name_elsewhere_is_found(file: str, source: str) -> None:
    assert len(found_in(source, file)) >= 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("dyn_probe/objectives/losses.py", 'row = "kto"'),
        ("dyn_probe/studies/squeezing_runs.py", 'objective = "dpo"'),
        ("dyn_probe/train/options/config.py", 'objective = "dpo"'),
        ("dyn_probe/train/grid.py", 'METHODS = ("dpo+gate-seq", "kto")'),
        ("dyn_probe/report/page_data.py", '"""A docstring about kto and dpo."""\nx = "a gate"'),
    ],
)
def test_a_name_where_it_belongs_passes(file: str, source: str) -> None:
    assert found_in(source, file) == []
