"""``dyn-probe methods``: objectives, warm-up stages and shapings with formulas, defaults and papers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from dyn_probe.errors import BadInput, unknown

if TYPE_CHECKING:
    from rich.table import Table

    from dyn_probe.objectives import MethodText

WIDTH = 100
"""Width of the tables where neither a terminal nor COLUMNS gives one."""


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Explain this one; without it, list all.")
    ] = None,
) -> None:
    """List the objectives and shapings with formulas, defaults and papers, or explain one of them."""
    from dyn_probe.objectives import describe

    rows = describe()
    if name is None:
        _print_overview(rows)
        return
    found = next((row for row in rows if row.name == name), None)
    if found is None:
        raise BadInput(unknown("method", name, [row.name for row in rows]))
    typer.echo("\n".join(_explained(found)))


def _print_overview(rows: list[MethodText]) -> None:
    from rich.console import Console

    from dyn_probe.objectives.describe import KINDS

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH
    widths = (max(len(row.name) for row in rows), max(len(text) for row in rows for text in row.defaults))
    for kind, flag in KINDS.items():
        console.print(f"{kind.capitalize()}s ({flag})", style="bold", markup=False)
        shown = [row for row in rows if row.kind == kind]
        console.print(_table(shown, *widths))
        if shown[0].common:
            names = ", ".join(line.partition(":")[0] for line in shown[0].common)
            console.print(f"Every one of them also takes {names}: a likelihood term on chosen\n", markup=False)
    typer.echo("Next: dyn-probe methods NAME")


def _table(rows: list[MethodText], name: int, default: int) -> Table:
    """A line per method, wrapped within its columns.

    Args:
        name, default: least widths at which no name and no default is broken.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, expand=True, pad_edge=False)
    table.add_column("name", no_wrap=True, min_width=name)
    table.add_column("formula", ratio=4, overflow="fold")
    table.add_column("defaults", min_width=default)
    table.add_column("paper", ratio=3, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, (row.name, row.formula, "\n".join(row.defaults) or "–", row.paper)))
    return table


def _explained(row: MethodText) -> list[str]:
    other = "Objectives" if row.kind == "shaping" else "Shapings"
    parts = {
        "Formula": row.formula,
        "When": row.when,
        "Dynamics": row.dynamics,
        "Reads": ", ".join(row.needs),
        "Score": row.score,
        other: ", ".join(row.composes_with),
        "Source": row.paper,
        "Note": row.notes,
    }
    lines = [f"{row.kind} {row.name}", *(f"{label + ':':10} {text}" for label, text in parts.items() if text)]
    flag = f"--shaping {row.name}:" if row.kind == "shaping" else "--set "
    options = [f"  {option}" for option in row.options]
    shared = [f"  {option}" for option in row.common]
    return [
        *lines,
        *([f"Options ({flag}NAME=VALUE)", *options] if options else []),
        *(["Options of every objective", *shared] if shared else []),
    ]
