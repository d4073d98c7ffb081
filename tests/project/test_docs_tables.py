"""The docs know every row of the tables, and their generated blocks are what the code would write today."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import forked
import pytest
import typer
from dyn_probe_cli.app import app
from families import FAMILIES

import dyn_probe
from dyn_probe.metric import FAMILIES as OPTIMIZERS
from dyn_probe.objectives import OBJECTIVES, SHAPINGS, describe
from dyn_probe.report.figures import FIGURES
from dyn_probe.trace.schema import TABLES

DOCS = Path(__file__).resolve().parents[2] / "docs"


UNPICTURED = {"shaping"}
"""Figures of runs with a shaping, which the run of ``make demo`` is not."""


def load_generator() -> ModuleType:
    """The script docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def absent(names: Iterable[str], text: str) -> list[str]:
    """Names that the text does not hold."""
    return [name for name in names if name not in text]


def command_names() -> list[str]:
    """Every command, as one types it."""
    return [f"dyn-probe {name}" for name in getattr(typer.main.get_command(app), "commands")]  # noqa: B009


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("methods.md", [f"### {name}\n" for name in OBJECTIVES]),
        ("methods.md", [f"### {name}\n" for name in SHAPINGS]),
        ("reading-the-figures.md", [row.title for row in FIGURES.values()]),
        ("reading-the-figures.md", [f"](images/figures/{name}.png)" for name in FIGURES if name not in UNPICTURED]),
        ("api.md", [f"### dyn_probe.{name}\n" for name in dyn_probe.__all__ if name[0] != "_"]),
        ("notation.md", [f"| {family.title} |" for family in OPTIMIZERS.values()]),
        ("cli.md", [f"## {name}\n" for name in command_names()]),
        ("../README.md", [f"`{name}`" for name in (*OBJECTIVES, *SHAPINGS, *FAMILIES)]),
        ("trace-schema.md", [f"`{column}`" for table in TABLES.values() for column in table.names]),
    ],
)
def test_every_row_of_the_tables_is_in_the_docs(page: str, names: list[str]) -> None:
    assert names
    assert absent(names, (DOCS / page).read_text(encoding="utf-8")) == []


def test_the_overview_of_methods_has_formulas_defaults_and_papers() -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    for row in describe():
        defaults = ", ".join(f"`{default}`" for default in row.defaults) or "–"
        formula = row.formula.replace("|", "∣")
        assert f"| [`{row.name}`](#{row.name}) | `{formula}` | {defaults} | {row.paper} |\n" in text


def test_warm_up_stages_stand_under_a_heading_of_their_own() -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    objectives, _, rest = text.partition("\n## Warm-up stages (`--sft-objective NAME`)\n")
    stages, _, _ = rest.partition("\n## Shapings (`--shaping NAME`)\n")
    for row in describe():
        assert (f"### {row.name}\n" in objectives) is (row.kind == "objective")
        assert (f"### {row.name}\n" in stages) is (row.kind == "warm-up stage")


def test_a_missing_row_is_found() -> None:
    assert absent(["### nobody\n"], (DOCS / "methods.md").read_text(encoding="utf-8")) == ["### nobody\n"]


def test_generated_pages_are_current() -> None:
    done = forked.run("docs/generate.py", "--check", cwd=DOCS.parent)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nwrite: make docs"


def test_a_stale_or_unknown_block_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = load_generator()
    monkeypatch.setattr(generator, "DOCS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: figures -->\nold\n<!-- end generated -->\n", encoding="utf-8")
    assert list(generator.stale()) == [page]
    page.write_text(generator.stale()[page], encoding="utf-8")
    assert generator.stale() == {}
    with pytest.raises(KeyError, match="choose from: commands"):
        generator.render("<!-- generated: nothing -->\n<!-- end generated -->")


def test_every_page_is_in_the_navigation() -> None:
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert absent([page.name for page in DOCS.glob("*.md")], navigation) == []
