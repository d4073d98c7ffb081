"""``dyn-probe reproduce``: a paper's experiment, trained again, and its claims judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from dyn_probe_cli.next_step import say_next

from dyn_probe.errors import BadInput, unknown
from dyn_probe.studies.presets import PRESETS, USUAL, preset_named

OPTIONS = {"sentiment": ("statements",), "squeezing": ("probe_file", "preset"), "theory": ()}
"""Study → the options that only it has."""


def _usual_seeds() -> str:
    """The default number of seeds, and the presets that have another."""
    usual = PRESETS[USUAL].seeds
    others = (f"{row.seeds} with --preset {name}" for name, row in PRESETS.items() if row.seeds != usual)
    return "; ".join([str(usual), *others])


def reproduce(
    study: Annotated[str, typer.Argument(metavar="STUDY", help=f"One of: {', '.join(OPTIONS)}.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of runs and report.", show_default="runs/STUDY")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.", show_default=_usual_seeds())] = None,
    statements: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="sentiment: your own statements as JSON lines with text and sentiment.",
            show_default="generated",
        ),
    ] = None,
    probe_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="squeezing: probe responses to train on and to measure, as JSON lines with prompt, chosen, rejected "
            "and further kinds.",
            show_default="generated",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help=f"squeezing: size of the study, {' or '.join(PRESETS)}.", show_default=USUAL),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing study in the folder.")] = False,
) -> None:
    """Reproduce a study from the literature with a small model, and say which of its claims hold.

    sentiment: the four answer styles of Yuan et al. 2024, §4.3, with the equivalents of its Figures 3, 4a and 4b.

    squeezing: where each method moves the probability mass (Ren & Sutherland 2024; Mouiche 2026), with the published Δ
    table beside the measured one.

    theory: Theorem 1, Corollary 2 and Theorem 3 of Yuan et al. 2024, each formula beside what autograd gives; seconds.
    """
    if study not in OPTIONS:
        raise BadInput(unknown("study", study, OPTIONS))
    given = {"statements": statements, "probe_file": probe_file, "preset": preset}
    foreign = [name for name, value in given.items() if value is not None and name not in OPTIONS[study]]
    if foreign:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise BadInput(f"{study} has no option {names}; leave it out")
    folder = out or Path("runs") / study
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise BadInput(f"{folder} exists; write --force to replace the study in it, or name another folder with --out")
    STUDIES[study](folder, force, seeds, **{name: given[name] for name in OPTIONS[study]})


def _sentiment(folder: Path, force: bool, seeds: int | None, statements: str | None) -> None:
    from dyn_probe.studies.sentiment_page import study_lines, write_study
    from dyn_probe.studies.sentiment_runs import Study, train_styles
    from dyn_probe.trace.reader import load_trace
    from dyn_probe.train.display import Display

    settings = Study(**_known(seeds=seeds, statements=statements))
    runs = train_styles(folder, settings, Display())
    traces = {style: [load_trace(path) for path in paths] for style, paths in runs.items()}
    page, judged = write_study(traces, folder / "report", asdict(settings), force)
    typer.echo("\n".join(study_lines(judged)))
    typer.echo(f"Report: {page}")
    say_next("report", *(paths[0] for paths in runs.values()))


def _squeezing(folder: Path, force: bool, seeds: int | None, probe_file: Path | None, preset: str | None) -> None:
    from dyn_probe.studies.squeezing_page import study_lines, write_study
    from dyn_probe.studies.squeezing_runs import left_out, read_data, train_methods
    from dyn_probe.trace.reader import load_trace
    from dyn_probe.train.display import Display

    settings = preset_named(preset or USUAL, seeds)
    runs = train_methods(folder, settings, probe_file, Display())
    traces = {method: [load_trace(path) for path in paths] for method, paths in runs.items()}
    about = {"preset": preset or USUAL} | asdict(settings) | {"probe file": str(probe_file or "generated")}
    missed = left_out(read_data(probe_file, settings)[0])
    page, frame = write_study(traces, folder / "report", about, force, missed)
    typer.echo("\n".join(study_lines(frame)))
    typer.echo(f"Report: {page}")
    say_next("report", *(paths[0] for paths in list(runs.values())[:4]))


def _theory(folder: Path, force: bool, seeds: int | None) -> None:
    from dyn_probe.studies.sentiment_page import study_lines
    from dyn_probe.studies.theory_page import run_statements, write_study

    page, judged = write_study(run_statements(seeds or 3), folder / "report", force)
    typer.echo("\n".join(study_lines(judged)))
    typer.echo(f"Report: {page}")


STUDIES: dict[str, Callable[..., None]] = {"sentiment": _sentiment, "squeezing": _squeezing, "theory": _theory}


def _known(**values: Any) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in values.items() if value is not None}
