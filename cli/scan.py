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


def scan(
    checkpoints: list[str], reference: str = "", rank: str = "", drop: str = "", keep: str = "", cleaned: str = "",
    **given: Any,
) -> None:  # fmt: skip
    """Measure preference pairs at saved checkpoints, without training: log-probabilities, gradient norms, inner
    products and cosines of every pair at each of them, as one trace that `report`, `summary` and `pairs` read. Called
    again with the same --out, it goes on with what is missing. With --rank, --drop and --cleaned it then writes the
    data file without the pairs that are ranked first."""
    from dyn_probe.data.names import check_names
    from dyn_probe.report.export.cleaned import Cleaning
    from dyn_probe.trace.reader import load_trace

    if not given.get("data"):
        raise BadInput("a scan needs the pairs that it measures; write --data with a name as record takes it")
    check_names(given["data"], reference or None)  # before torch is loaded
    cleaning = Cleaning.of(rank, drop, keep, cleaned, given["data"], bool(given.get("force")))
    config = RunConfig(**{name: value for name, value in given.items() if value not in (None, [])})
    find_checkpoints(checkpoints)

    from dyn_probe.train.scanning.measured import scan as measure

    try:
        trace = measure(checkpoints, config, reference)
    except KeyboardInterrupt as stop:
        said = str(stop) or "Ctrl-C"
        typer.echo(f"\nStopped by {said}; the same command goes on with the checkpoints that are missing.", err=True)
        raise typer.Exit(getattr(stop, "exit_code", 130)) from None
    if cleaning is not None:
        typer.echo(f"Cleaned: {cleaning.write(load_trace(trace))}")
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


def _text(name: str, metavar: str, words: str) -> inspect.Parameter:
    """An option that is a text, empty where it is not given."""
    option = typer.Option(metavar=metavar, help=words, show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=Annotated[str, option])


_CLEANING = [
    _text("rank", "NAME", "Rank the pairs by ches (similarity of hidden states, per token), cosine, or fall of chosen "
          "from the first to the last checkpoint."),
    _text("drop", "SHARE", "Drop the pairs that are ranked first, such as 5%."),
    _text("keep", "SHARE", "Keep those that are ranked last, in place of --drop."),
    _text("cleaned", "FILE", "Write the lines of --data that are kept, unchanged; for files of JSON lines."),
]  # fmt: skip
_DEFAULTS = RunConfig()
_OPTIONS = [
    parameter(name, replace(OPTIONS[name], **HELP.get(name, {})), "" if name == "data" else getattr(_DEFAULTS, name))
    for name in OF_SCAN
]
_PARAMETERS = [_CHECKPOINTS, *_OPTIONS, _REFERENCE, *_CLEANING]

scan.__signature__ = inspect.Signature(_PARAMETERS)  # type: ignore[attr-defined]
scan.__annotations__ = {one.name: one.annotation for one in _PARAMETERS}
