"""``dyn-probe grid``: many methods from the same policy on the same data, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from dyn_probe_cli.next_step import say_next

from dyn_probe.errors import BadInput


def grid(
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OBJECTIVE[+SHAPING]",
            help="A method with its options, e.g. ipo, dpo:lr=1e-4,beta=0.05 or dpo+gate-seq:form=gradient; "
            "repeatable.",
            show_default="ten common methods",
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE,…",
            help="Train every method in every combination of these values, of a hyper-parameter (beta) or of the "
            "training (lr, batch-size, …); repeatable.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds per method and setting.")] = 1,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of the runs and of the report that compares them.")
    ] = Path("runs/grid"),
    data: Annotated[str | None, typer.Option(help="As in record.", show_default="that of record")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps of every run.", show_default="that of record")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="Options of record, shared by all runs.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the grid in the folder; recorded runs are kept.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing grid in the folder.")] = False,
) -> None:
    """Train several methods from the same starting policy on the same pairs, and write a report that compares them:
    means with their errors over settings and seeds, and paired tests of every method against the first."""
    from dyn_probe.data.names import check_names

    check_names(data, None)  # before torch is loaded

    from dyn_probe.train.parallel import first_process

    if first_process():
        _check_folder(out, force, resume)
    given = {"data": data, "steps": steps, "force": force}
    base = {name: value for name, value in given.items() if value is not None}
    _train(config, base, {"methods": methods, "seeds": seeds, "vary": vary or ()}, out, resume)


def _check_folder(out: Path, force: bool, resume: bool) -> None:
    if force and resume:
        raise BadInput("--force replaces the grid and --resume continues it: write only one of them")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (force or resume):
        raise BadInput(
            f"{out} exists; write --resume to resume the grid in it, --force to replace it, or name another folder "
            "with --out"
        )


def _train(config: Path | None, given: dict[str, Any], cells: dict[str, Any], out: Path, resume: bool) -> None:
    from dyn_probe.report.build import build_report
    from dyn_probe.train import grid as library
    from dyn_probe.train.parallel import first_process

    base = library.base_config(config, given)
    runs = library.configurations(base, out, **cells | {"methods": cells["methods"] or library.METHODS})
    folders = library.train_grid(runs, typer.echo if first_process() else lambda _: None, resume=resume)
    if not first_process():
        return
    found = library.outcomes(runs)
    typer.echo("\n".join(["", *library.outcome_lines(found)]))
    report = build_report(folders, out / "report", given["force"] or resume, library.outcome_data(found))
    typer.echo(f"Report: {report}")
    say_next("summary", folders[0])
