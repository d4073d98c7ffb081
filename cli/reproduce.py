"""``dyn-probe reproduce``: a paper's experiment, trained again, and its claims judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from dyn_probe_cli.next_step import say_next

from dyn_probe.errors import BadInput, unknown
from dyn_probe.studies.presets import PRESETS, TRAININGS, USUAL

_MODEL = ("preset", "model", "lora_rank", "device", "arm")
OPTIONS = {
    "sentiment": ("statements", *_MODEL),
    "squeezing": ("probe_file", *_MODEL),
    "objectives": ("data", *_MODEL),
    "gate": ("arm",),
    "theory": (),
}
"""Study → the options that it has beside --out, --seeds and --force."""


def _usual_seeds() -> str:
    """The default number of seeds, and the presets that have another."""
    usual = PRESETS[USUAL].seeds
    others = (f"{row.seeds} with --preset {name}" for name, row in PRESETS.items() if row.seeds != usual)
    return "; ".join([str(usual), *others])


Study = Annotated[str, typer.Argument(metavar="STUDY", help=f"One of: {', '.join(OPTIONS)}.")]
Out = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder of runs and report.", show_default="runs/STUDY")
]
Seeds = Annotated[int | None, typer.Option(min=1, help="Number of seeds.", show_default=_usual_seeds())]
Statements = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="sentiment: your own statements as JSON lines with text and sentiment.",
        show_default="generated",
    ),
]
ProbeFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="squeezing: probe responses to train on and to measure, as JSON lines with prompt, chosen, rejected "
        "and further kinds.",
        show_default="generated",
    ),
]
SizeName = Annotated[
    str | None,
    typer.Option(
        help=f"squeezing: size of the study, {' or '.join(PRESETS)}. With --model: whose settings, "
        f"{' or '.join(TRAININGS)}.",
        show_default=f"{USUAL}; with --model by device",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="sentiment, squeezing, objectives: a pretrained model to start from, as in record --model.",
        show_default="built-in, or a small one",
    ),
]
Data = Annotated[
    str | None, typer.Option(help="objectives: pairs, as in record --data.", show_default="sentiment:long-suffix")
]
LoraRank = Annotated[
    int | None,
    typer.Option(min=1, help="With --model: train LoRA adapters of this rank.", show_default="all weights"),
]
Device = Annotated[str | None, typer.Option(help="With --model: as in record.", show_default="auto")]
SingleArm = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Train only this run of the study, for example dpo-0; several can be trained in parallel.",
        show_default="all unfinished ones",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Retrain finished runs, and write into a folder of any kind.")]


def reproduce(
    study: Study,
    out: Out = None,
    seeds: Seeds = None,
    statements: Statements = None,
    probe_file: ProbeFile = None,
    preset: SizeName = None,
    model: Model = None,
    data: Data = None,
    lora_rank: LoraRank = None,
    device: Device = None,
    arm: SingleArm = None,
    force: Force = False,
) -> None:
    """Reproduce a study from the literature, and say which of its claims hold.

    An interrupted study resumes where it stopped; finished runs are kept. --arm trains a single run.

    sentiment: the four answer styles of Yuan et al. 2024, §4.3, with the equivalents of its Figures 3, 4a and 4b.

    squeezing: where each method moves the probability mass (Ren & Sutherland 2024; Mouiche 2026), with the published Δ
    table beside the measured one.

    objectives: the ten methods of Yuan et al. 2024 (its Figures 1, 2, 5 and 6), its DPO★, and AdaDPO.

    gate: thresholds, slopes and quantiles of Gate-DPO, and the gate starting from a collapsed policy.

    theory: Theorem 1, Corollary 2 and Theorem 3 of Yuan et al. 2024, each formula beside what autograd gives; seconds.
    """
    given = {
        "statements": statements, "probe_file": probe_file, "preset": preset, "model": model, "data": data,
        "lora_rank": lora_rank, "device": device, "arm": arm,
    }  # fmt: skip
    _check(study, given)
    folder = out or Path("runs") / study
    if study == "theory":
        _theory(folder, force, seeds)
    else:
        _arms(study, force, given.pop("arm"), folder=folder, seeds=seeds, **given)


def _check(study: str, given: dict[str, Any]) -> None:
    """Refuse an unknown study, and options that it does not have."""
    if study not in OPTIONS:
        raise BadInput(unknown("study", study, OPTIONS))
    foreign = [name for name, value in given.items() if value is not None and name not in OPTIONS[study]]
    if foreign:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise BadInput(f"{study} has no option {names}; leave it out")


def _arms(study: str, force: bool, arm: Any, **options: Any) -> None:
    from dyn_probe.data.names import check_names

    check_names(options["data"], options["model"])  # before torch is loaded

    from dyn_probe.studies.reproducing import Request, reproduce

    page, runs = reproduce(study, Request(**options), arm, force, typer.echo)
    typer.echo(f"Report: {page}")
    say_next("report", *runs[:4])


def _theory(folder: Path, force: bool, seeds: int | None) -> None:
    from dyn_probe.studies.claims import claim_lines
    from dyn_probe.studies.theory_page import run_statements, write_study

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise BadInput(f"{folder} exists; write --force to replace the study in it, or name another folder with --out")
    page, judged = write_study(run_statements(seeds or 3), folder / "report", force)
    typer.echo("\n".join(claim_lines(judged)))
    typer.echo(f"Report: {page}")
