"""``dyn-probe methods``: objectives and shapings, their formulas and options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dyn_probe.errors import BadInput

if TYPE_CHECKING:
    from dyn_probe.objectives import Method


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Explain one; without it, list all of them.")
    ] = None,
) -> None:
    """List the objectives and shapings, or explain one: formula, options, dynamics, source."""
    from dyn_probe.objectives import describe
    from dyn_probe.train.choices import unknown

    rows = describe()
    if name is None:
        typer.echo("\n".join(_overview(rows)))
        return
    found = next((row for row in rows if row.name == name), None)
    if found is None:
        raise BadInput(unknown("method", name, [row.name for row in rows]))
    typer.echo("\n".join(_explained(found)))


def _overview(rows: list[Method]) -> list[str]:
    width = max(len(row.name) for row in rows)
    lines = []
    for kind in dict.fromkeys(row.kind for row in rows):
        lines += [f"{kind.capitalize()}s (--{kind} NAME)"]
        lines += [f"  {row.name:{width}}  {row.formula}" for row in rows if row.kind == kind] + [""]
    return [*lines, "Next: dyn-probe methods NAME"]


def _explained(row: Method) -> list[str]:
    other = "Shapings" if row.kind == "objective" else "Objectives"
    parts = {
        "Formula": row.formula,
        "When": row.when,
        "Dynamics": row.dynamics,
        "Reads": ", ".join(row.needs),
        other: ", ".join(row.composes_with),
        "Source": row.paper,
        "Note": row.notes,
    }
    lines = [f"{row.kind} {row.name}", *(f"{label + ':':10} {text}" for label, text in parts.items() if text)]
    flag = "--set" if row.kind == "objective" else f"--shaping {row.name}:"
    options = [f"  {option}" for option in row.options]
    return [*lines, *([f"Options ({flag} NAME=VALUE)".replace(": ", ":"), *options] if options else [])]
