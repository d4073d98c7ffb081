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
            help="A method with its options, e.g. ipo, dpo:beta=0.05 or dpo+gate-seq:form=gradient; repeatable.",
            show_default="ten common methods",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds per method.")] = 1,
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
    force: Annotated[bool, typer.Option("--force", help="Replace an existing grid in the folder.")] = False,
) -> None:
    """Train several methods from the same starting policy on the same pairs, and write a report that compares them."""
    from dyn_probe.data.names import check_names

    check_names(data, None)  # before torch is loaded

    from dyn_probe.train.parallel import first_process

    if first_process() and out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise BadInput(f"{out} exists; write --force to replace the grid in it, or name another folder with --out")

    given = {"data": data, "steps": steps, "force": force}
    _train(config, {name: value for name, value in given.items() if value is not None}, methods, seeds, out)


def _train(config: Path | None, given: dict[str, Any], methods: list[str] | None, seeds: int, out: Path) -> None:
    from dyn_probe.report.build import build_report
    from dyn_probe.train import grid as library
    from dyn_probe.train.parallel import first_process

    base = library.base_config(config, given)
    runs = library.configurations(base, out, methods or library.METHODS, seeds)
    folders = library.train_grid(runs, typer.echo if first_process() else lambda _: None)
    if not first_process():
        return
    found = library.outcomes(runs)
    typer.echo("\n".join(["", *library.outcome_lines(found)]))
    report = build_report(folders, out / "report", given["force"], library.outcome_data(found))
    typer.echo(f"Report: {report}")
    say_next("summary", folders[0])
