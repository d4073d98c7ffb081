"""What every tracked file must be: free of machine paths and odd hosts, short, documented where public."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST_FILE = 400

HOSTS = frozenset(
    {
        "arxiv.org",
        "github.com",
        "huggingface.co",
        "keepachangelog.com",
        "semver.org",
        "www.apache.org",
        "www.w3.org",
    }
)
"""Hosts that a tracked file may name: papers, code, the formats' own homes. No package registry."""

MACHINE_PATH = re.compile(r"(?<![\w.:/<>\[\]-])/(?:home|root|work|opt|srv|mnt|Users|private|workspace)/\w")
REGISTRY_OPTION = re.compile(r"--(?:(?:extra-)?index-url|find-links|trusted-host)")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
ADDRESS = re.compile(r"https?://[^\s\"'`<>)\]}\\]+")


def tracked() -> list[Path]:
    """Every text file that git tracks (or would, once added), except the licence."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    paths = [ROOT / name for name in sorted(set(listed)) if name != "LICENSE"]
    return [path for path in paths if path.is_file() and path.suffix not in {".png", ".parquet", ".arrow"}]


def foreign(text: str) -> list[str]:
    """Machine paths, registry options and unknown hosts that ``text`` names."""
    hosts = {urlsplit(address).hostname or "" for address in ADDRESS.findall(text)} - HOSTS
    local = {host for host in hosts if host in {"localhost", "127.0.0.1"} or host.endswith(".example")}
    found = [match.group() for rule in (MACHINE_PATH, REGISTRY_OPTION) for match in rule.finditer(text)]
    return [*found, *sorted(hosts - local)]


def undocumented(source: str) -> list[str]:
    """What of the public names lacks a docstring (functions, classes) or annotations (methods too)."""
    tree = ast.parse(source)
    top = list(_public(tree))
    methods = [child for node in top if isinstance(node, ast.ClassDef) for child in _public(node)]
    silent = [f"line {node.lineno}: {node.name} has no docstring" for node in top if not ast.get_docstring(node)]
    return silent + [f"line {node.lineno}: {node.name} lacks {bare}" for node in top + methods if (bare := _bare(node))]


def _public(node: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    return (child for child in node.body if isinstance(child, Definition) and child.name[0] != "_")


def _bare(node: Definition) -> list[str]:
    """Arguments of a function that have no annotation, and "return" if that has none."""
    if isinstance(node, ast.ClassDef):
        return []
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    bare = [a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls"}]
    return bare + (["return"] if node.returns is None else [])


def library_files() -> list[Path]:
    """Every Python file of the two packages."""
    return sorted([*(ROOT / "dyn_probe").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])


def offences(paths: list[Path], rule: Callable[[str], list[str]]) -> dict[str, list[str]]:
    """File → what ``rule`` finds wrong with its text, for the files with anything wrong."""
    found = {str(path.relative_to(ROOT)): rule(path.read_text(encoding="utf-8")) for path in paths}
    return {name: wrong for name, wrong in found.items() if wrong}


def too_long(text: str) -> list[str]:
    """One complaint if the file has more lines than the limit."""
    lines = len(text.splitlines())
    return [f"{lines} lines; split it by noun, {LONGEST_FILE} is the most"] if lines > LONGEST_FILE else []


def test_no_machine_paths_or_registry_hosts() -> None:
    assert offences(tracked(), foreign) == {}


def test_files_are_short() -> None:
    assert offences([path for path in tracked() if path.suffix == ".py"], too_long) == {}


def test_public_names_are_documented_and_typed() -> None:
    assert offences(library_files(), undocumented) == {}


def test_a_long_file_is_found() -> None:
    assert too_long("x\n" * (LONGEST_FILE + 1))
    assert not too_long("x\n" * LONGEST_FILE)


@pytest.mark.parametrize(
    "text",
    [
        "cd /home" + "/ann/project",
        "pip install --index" + "-url x",
        "see https:" + "//packages.invalid/simple/torch",
    ],
)
def test_a_foreign_name_is_found(text: str) -> None:
    assert foreign(text)


@pytest.mark.parametrize(
    "text", ["see https://arxiv.org/abs/2410.13828", "a/wo" + "rk/b", "GET https://x.example/home/me"]
)
def test_an_ordinary_text_passes(text: str) -> None:
    assert foreign(text) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(x: int) -> int:\n    return x",
        'def f(x) -> int:\n    """Doc."""',
        'def f(x: int):\n    """Doc."""',
        "class C:\n    x = 1",
        'class C:\n    """Doc."""\n    def f(self, x) -> int:\n        return 1',
    ],
)
def test_an_undocumented_name_is_found(source: str) -> None:
    assert undocumented(source)


def test_a_documented_name_passes() -> None:
    assert undocumented('def f(x: int) -> int:\n    """Doc."""\n\ndef _g(x):\n    return x') == []


LONGEST_LIBRARY_FILE, LONGEST_FUNCTION, LARGEST_ROOM, NAMES_TWICE = 300, 50, 26, 4
TABLES = ("figures", "verdicts")
"""Rooms in which every row of a table has a file of its own."""


def long_functions(source: str) -> list[str]:
    """Functions with more lines than the limit."""
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return [f"{name}: {lines} lines" for name, lines in lengths.items() if lines > LONGEST_FUNCTION]


def crowded(paths: list[Path]) -> list[str]:
    """Rooms with more files than the limit."""
    rooms = Counter(path.parent for path in paths if path.parent.name not in TABLES)
    return [f"{room.name}: {files} files" for room, files in rooms.items() if files > LARGEST_ROOM]


def names_twice(paths: list[Path]) -> list[str]:
    """File names that stand in several rooms."""
    counts = Counter(path.name for path in paths if path.name != "__init__.py")
    return sorted(name for name, rooms in counts.items() if rooms > 1)


def test_the_library_is_in_small_pieces() -> None:
    paths = library_files()
    assert {p.name: n for p in paths if (n := len(p.read_text().splitlines())) > LONGEST_LIBRARY_FILE} == {}
    assert offences(paths, long_functions) == {}
    assert crowded(paths) == []
    assert len(names_twice(paths)) <= NAMES_TWICE, names_twice(paths)


def test_a_large_piece_is_found() -> None:
    body = "\n    x = 1" * LONGEST_FUNCTION
    assert long_functions(f"def f():{body}") == [f"f: {LONGEST_FUNCTION + 1} lines"] and not long_functions(
        "def f(): 1"
    )
    room = [Path("a") / f"{number}.py" for number in range(LARGEST_ROOM + 1)]
    assert crowded(room) == [f"a: {LARGEST_ROOM + 1} files"] and crowded(room[1:]) == []
    assert names_twice([Path("a/x.py"), Path("b/x.py"), Path("b/y.py")]) == ["x.py"]
