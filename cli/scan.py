"""``dyn-probe scan``: pairs measured at saved checkpoints, without training."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Annotated, Any

import typer
from dyn_probe_cli.next_step import say_next
from dyn_probe_cli.run_options import parameter

from dyn_probe.errors import BadInput
from dyn_probe.train.options.config import OPTIONS, RunConfig
from dyn_probe.train.scanning.saved_steps import OF_SCAN, find_checkpoints


def scan(checkpoints: list[str], reference: str = "", **given: Any) -> None:
    """Measure preference pairs at saved checkpoints, without training: log-probabilities, gradient norms, inner
    products and cosines of every pair at each of them, as one trace that `report`, `summary` and `pairs` read. Called
    again with the same --out, it goes on with what is missing."""
    from dyn_probe.data.names import check_names

    if not given.get("data"):
        raise BadInput("a scan needs the pairs that it measures; write --data with a name as record takes it")
    check_names(given["data"], reference or None)  # before torch is loaded
    config = RunConfig(**{name: value for name, value in given.items() if value not in (None, [])})
    find_checkpoints(checkpoints)

    from dyn_probe.train.scanning.measured import scan as measure

    try:
        trace = measure(checkpoints, config, reference)
    except KeyboardInterrupt as stop:
        said = str(stop) or "Ctrl-C"
        typer.echo(f"\nStopped by {said}; the same command goes on with the checkpoints that are missing.", err=True)
        raise typer.Exit(getattr(stop, "exit_code", 130)) from None
    say_next("report", trace)


HELP: dict[str, dict[str, Any]] = {
    "out": {"default_text": "runs/scan-DATA"},
    "data": {"help": "The pairs, as record --data takes them; required."},
    "objective": {"help": "Objective whose pulls and losses are recorded, NAME or NAME:KEY=VALUE,…."},
    "batch_size": {"help": "Pairs per forward and backward pass."},
    "strict": {"help": "Stop where the trace cannot be written (full disk, file-size limit), instead of going on."},
    "force": {"help": "Replace an existing trace in --out, instead of going on with it."},
}
"""Option → what is said otherwise of it than in record."""

_CHECKPOINTS = inspect.Parameter(
    "checkpoints",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT",
            help="Models as record --model takes them (also folders of adapters), or folders with checkpoint-STEP in "
            "them, such as a run recorded with --keep-checkpoints; a step is that of trainer_state.json or of the "
            "name, else the place in this list.",
        ),
    ],
)
_REFERENCE = inspect.Parameter(
    "reference",
    inspect.Parameter.KEYWORD_ONLY,
    default="",
    annotation=Annotated[
        str, typer.Option(metavar="MODEL", help="The reference policy.", show_default="the first checkpoint, by step")
    ],
)
_DEFAULTS = RunConfig()
_OPTIONS = [
    parameter(name, replace(OPTIONS[name], **HELP.get(name, {})), "" if name == "data" else getattr(_DEFAULTS, name))
    for name in OF_SCAN
]
_PARAMETERS = [_CHECKPOINTS, *_OPTIONS, _REFERENCE]

scan.__signature__ = inspect.Signature(_PARAMETERS)  # type: ignore[attr-defined]
scan.__annotations__ = {one.name: one.annotation for one in _PARAMETERS}
