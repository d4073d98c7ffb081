"""``dyn-probe record``: train with the reference loop and record the training. The options are those of RunConfig."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from dyn_probe_cli.next_step import say_next
from dyn_probe_cli.run_options import parameter

from dyn_probe.errors import BadInput
from dyn_probe.train.options.config import OPTIONS, RunConfig
from dyn_probe.train.options.option_values import read_value
from dyn_probe.train.options.shares import read_budget

OF_COMMANDS = (
    "out",
    "every",
    "budget",
    "gram_every",
    "metric_every",
    "metric",
    "split_momentum",
    "update",
    "realised",
    "final_pairs",
    "strict",
    "force",
)
"""Options that are also those of a command that is recorded."""


def record(config: Path | None = None, no_text: bool = False, command: list[str] | None = None, **given: Any) -> None:
    """Train on preference pairs and record the gradient dynamics of every pair. Without options it trains a small
    built-in model on generated data, offline, in a minute or two. With a command behind `--` that trains by TRL's
    DPOTrainer, CPOTrainer, ORPOTrainer or KTOTrainer, that training is recorded instead: dyn-probe record --out
    runs/mine -- python train.py."""
    if command:
        _record_command(command, {"config": config, **given}, not no_text)
    if no_text:
        raise BadInput("--no-text is for a command that is recorded: dyn-probe record --no-text -- COMMAND")

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
    if made.save and (run / "model").is_dir() and os.environ.get("RANK", "0") == "0":
        typer.echo(f"Model: {run / 'model'}")
    say_next("report", run)


def _record_command(command: list[str], given: dict[str, Any], text: bool) -> NoReturn:
    """Somebody's own training, with the recorder put in by the environment."""
    from dyn_probe.attach.attach_options import AttachOptions
    from dyn_probe.attach.command import end_like, run_recorded

    told = {name: value for name, value in given.items() if value not in (None, [])}
    if wrong := [f"--{OPTIONS[name].name if name in OPTIONS else name}" for name in told if name not in OF_COMMANDS]:
        known = ", ".join(f"--{OPTIONS[name].name}" for name in OF_COMMANDS)
        raise BadInput(
            f"a recorded command has its own settings; leave out {', '.join(wrong)} before --. "
            f"Allowed there: {known}, --no-text"
        )
    read = {name: _read(name, value) for name, value in told.items()} | {"text": text}
    realised, every = read.pop("realised", None), read.get("every", 1)
    if realised is not None:
        read["realised_every"] = int(realised) * (1 if every == "auto" else every)
    if "budget" in read:
        read["budget"] = read_budget(read["budget"])
    options = AttachOptions.of(read)
    raise typer.Exit(end_like(run_recorded(command, options)))


def _read(name: str, value: Any) -> Any:
    if name not in OPTIONS:
        return value
    read, complaint = read_value(OPTIONS[name], value)
    if complaint:
        raise BadInput(f"--{OPTIONS[name].name} {complaint}")
    return read


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
_NO_TEXT = inspect.Parameter(
    "no_text",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool, typer.Option("--no-text", help="With a command: leave the pairs' texts out of the trace.")
    ],
)
_COMMAND = inspect.Parameter(
    "command",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- COMMAND…]", help="A command that trains by one of TRL's trainers on pairs."),
    ],
)
_DEFAULTS = RunConfig()
_OPTIONS = [parameter(name, option, getattr(_DEFAULTS, name)) for name, option in OPTIONS.items()]
_PARAMETERS = [_CONFIG, *_OPTIONS, _NO_TEXT, _COMMAND]

record.__signature__ = inspect.Signature(_PARAMETERS)  # type: ignore[attr-defined]
record.__annotations__ = {one.name: one.annotation for one in _PARAMETERS}
