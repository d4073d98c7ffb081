"""Options of ``RunConfig`` as options of a command."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from dyn_probe.train.options.option_values import RunOption


def parameter(name: str, option: RunOption, default: Any) -> inspect.Parameter:
    """An option of the command. Its default is None, so that an option that was not typed is left to the YAML file."""
    shown = option.default_text or (str(default) if default not in ((), {}, "") else "")
    flags = [f"--{option.name}"]
    if option.kind.removesuffix(" | None") == "bool":
        shown = option.default_text or (f"--{option.name}" if default else f"--no-{option.name}")
        flags = [f"--{option.name}/--no-{option.name}"]
    named = option.choices and option.kind == "str"
    choices = f" One of: {', '.join(option.choices)}." if named else ""
    stated = f" [default: {shown}]" if shown else ""
    declared = typer.Option(*flags, help=option.help + choices + stated, show_default=False, metavar=_metavar(option))
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[_cli_type(option), declared]
    )


def _cli_type(option: RunOption) -> Any:
    """The type with which the command line parses the option; RunConfig checks the rest."""
    repeated = option.kind.startswith(("tuple", "dict"))
    kinds = {"int": int, "float": float, "bool": bool}
    return list[str] | None if repeated else kinds.get(option.kind.removesuffix(" | None"), str) | None


def _metavar(option: RunOption) -> str | None:
    """What stands for the value in the help; click names numbers and texts itself."""
    named = {"dict": "NAME=VALUE", "tuple": "NAME", "int | str": "|".join(["N", *option.choices])}
    kind = option.kind.partition("[")[0]
    return "FOLDER" if option.name == "out" else named.get(kind)
