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
    products and cosines of every pair at each of them, as one trace that `report`, `summary` and `pairs` read. Run
    again with the same --out, it measures only what is missing. With --rank, --drop and --cleaned it then writes the
    data file without the top-ranked pairs."""
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
        typer.echo(f"\nStopped by {said}; the same command continues with the missing checkpoints.", err=True)
        raise typer.Exit(getattr(stop, "exit_code", 130)) from None
    if cleaning is not None:
        typer.echo(f"Cleaned: {cleaning.write(load_trace(trace))}")
    say_next("report", trace)


HELP: dict[str, dict[str, Any]] = {
    "out": {"default_text": "runs/scan-DATA"},
    "data": {"help": "The pairs, as record --data takes them; required."},
    "objective": {"help": "Objective whose pulls and losses are recorded, NAME or NAME:KEY=VALUE,…."},
    "batch_size": {"help": "Pairs per forward and backward pass."},
    "strict": {
        "help": "Stop if the trace cannot be written (full disk, file-size limit), instead of continuing without it."
    },
    "force": {"help": "Replace an existing trace in --out, instead of continuing it."},
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
            "them, such as a run recorded with --keep-checkpoints; the step is read from trainer_state.json or the "
            "name; failing that, it is the position in this list.",
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
    _text("drop", "SHARE", "Drop this share of the pairs, top-ranked first, e.g. 5%."),
    _text("keep", "SHARE", "Keep this share of the pairs, lowest-ranked; instead of --drop."),
    _text("cleaned", "FILE", "Write the kept lines of --data, unchanged, to this file; for JSON-lines data."),
]  # fmt: skip
_DEFAULTS = RunConfig()
_OPTIONS = [
    parameter(name, replace(OPTIONS[name], **HELP.get(name, {})), "" if name == "data" else getattr(_DEFAULTS, name))
    for name in OF_SCAN
]
_PARAMETERS = [_CHECKPOINTS, *_OPTIONS, _REFERENCE, *_CLEANING]

scan.__signature__ = inspect.Signature(_PARAMETERS)  # type: ignore[attr-defined]
scan.__annotations__ = {one.name: one.annotation for one in _PARAMETERS}
