"""``dyn-probe export``: a recorded run for other programs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Trace folder.")],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="csv, json (JSON lines), parquet, tensorboard or wandb (offline).",
            show_default="required",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder to write into.", show_default="RUN/export-FORM")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that is not empty; an older export is replaced.")
    ] = False,
) -> None:
    """Write the tables of a run as CSV, JSON lines or Parquet, or its curves over the steps for TensorBoard or Weights
    & Biases. Nothing leaves this machine."""
    from dyn_probe.report.export.writing import FORMS
    from dyn_probe.report.export.writing import export as write
    from dyn_probe.trace.reader import load_trace

    folder, said = write(load_trace(run), to, out, force)
    typer.echo(f"Export: {folder}: {said}")
    following = FORMS[to or ""].next_command.format(out=shlex.quote(str(folder)), run=shlex.quote(str(run)))
    typer.echo(f"Next: {following}")
