"""``dyn-probe reproduce``: a paper's findings, trained again and judged."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from dyn_probe_cli.next_step import say_next

from dyn_probe.errors import BadInput

STUDIES = ("sentiment",)


def reproduce(
    study: Annotated[str, typer.Argument(metavar="STUDY", help=f"One of: {', '.join(STUDIES)}.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of runs and report.", show_default="runs/STUDY")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with this many seeds.")] = 3,
    statements: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Your own statements: JSON lines with text and sentiment.", show_default="generated"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an older study in the folder.")] = False,
) -> None:
    """Train a study of the literature again on the built-in model, and say which of its claims hold here.

    sentiment: the four answer styles of Yuan et al. 2024, §4.3, with the equivalents of its Figures 3, 4a and 4b.
    """
    if study not in STUDIES:
        raise BadInput(f"unknown study {study!r}; choose one of: {', '.join(STUDIES)}")
    folder = out or Path("runs") / study
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise BadInput(f"{folder} exists; write --force to replace the study in it, or another --out")

    from dyn_probe.report.study_sentiment import study_lines, write_study
    from dyn_probe.trace.reader import load_trace
    from dyn_probe.train.study_sentiment import Study, train_styles

    settings = Study(seeds=seeds, statements=statements or "")
    runs = train_styles(folder, settings, typer.echo)
    traces = {style: [load_trace(path) for path in paths] for style, paths in runs.items()}
    page, judged = write_study(traces, folder / "report", asdict(settings), force)
    typer.echo("\n".join(study_lines(judged)))
    typer.echo(f"Report: {page}")
    say_next("report", *(paths[0] for paths in runs.values()))
