"""``dyn-probe record``: train with the reference loop and record the training. The options are those of RunConfig."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer
from dyn_probe_cli.next_step import say_next

from dyn_probe.train.options.config import OPTIONS, RunConfig
from dyn_probe.train.options.option_values import RunOption


def record(config: Path | None = None, **given: Any) -> None:
    """Train on preference pairs and record the gradient dynamics of every pair. Without options it trains a small
    built-in model on generated data, offline, in a minute or two."""
    from dyn_probe.data.names import check_names

    check_names(given.get("data"), given.get("model"))  # before torch is loaded

    from dyn_probe.train.options.config_file import make_config

    made = make_config(config, {name: value for name, value in given.items() if value not in (None, [])})
    check_names(*(None if given.get(name) else getattr(made, name) for name in ("data", "model")))

    from dyn_probe.objectives import objective, parse_objective, parse_shapings

    name, hyper = parse_objective(made.objective)  # before torch is loaded
    parse_shapings(made.shaping, objective(name), hyper)

    from dyn_probe.train.loop import record as train

    try:
        run = train(made, progress=True)
    except KeyboardInterrupt as stop:
        if not (made.folder / "run.json").is_file():
            raise
        typer.echo(f"\nStopped by {str(stop) or 'Ctrl-C'}; what was recorded is kept.", err=True)
        say_next("report", made.folder)
        raise typer.Exit(getattr(stop, "exit_code", 130)) from None
    say_next("report", run)


def _parameter(name: str, option: RunOption, default: Any) -> inspect.Parameter:
    """An option of the command. Its default is None, so that an option that was not typed is left to the YAML file."""
    shown = option.default_text or (str(default) if default not in ((), {}, "") else "")
    flags = [f"--{option.name}"]
    if option.kind.removesuffix(" | None") == "bool":
        shown = option.default_text or (f"--{option.name}" if default else f"--no-{option.name}")
        flags = [f"--{option.name}/--no-{option.name}"]
    choices = f" One of: {', '.join(option.choices)}." if option.choices else ""
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
    named = {"dict": "NAME=VALUE", "tuple": "NAME"}
    kind = option.kind.partition("[")[0]
    return "FOLDER" if option.name == "out" else named.get(kind)


_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE.yaml", help="Options from a YAML file; the command line takes precedence."
        ),
    ],
)
_DEFAULTS = RunConfig()
_PARAMETERS = [_CONFIG, *(_parameter(name, option, getattr(_DEFAULTS, name)) for name, option in OPTIONS.items())]

record.__signature__ = inspect.Signature(_PARAMETERS)  # type: ignore[attr-defined]
record.__annotations__ = {parameter.name: parameter.annotation for parameter in _PARAMETERS}
