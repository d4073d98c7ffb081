"""``dyn-probe heatmap``: where a pair's entanglement comes from, token by token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from dyn_probe_cli.next_step import say_next

from dyn_probe.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dyn_probe.token_analysis import TokenHeat

SUFFIXES = (".png", ".svg", ".pdf")


def heatmap(
    source: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Trace folder, or a model as in record --model.")],
    pair: Annotated[
        str | None,
        typer.Option(
            help="The pair: its number (of a run: in order of first appearance; of data: its row, from 0), its id, or "
            "the beginning of the id.",
            show_default="the first",
        ),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(help="For a run: only the map of this step, at full size.", show_default="up to nine steps"),
    ] = None,
    data: Annotated[str | None, typer.Option(help="For a model: the pairs, as in record --data.")] = None,
    columns: Annotated[
        str,
        typer.Option(metavar="PART=COLUMN,…", help="For a model: as in record --columns.", show_default="the shape's"),
    ] = "",
    params: Annotated[
        str, typer.Option(help="For a model: all, head, last-block, or a regular expression on parameter names.")
    ] = "all",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="PNG, SVG or PDF file.", show_default="heatmap-PAIR.png, for a run in its folder"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Draw the cosines between a pair's chosen and rejected token gradients, recorded in a run or computed from a
    model."""
    from dyn_probe.trace.references import is_reference, trace_folder

    _check_file(out, force, source)
    run = trace_folder(source)
    if (run / "run.json").is_file():
        if data is not None or params != "all" or columns:
            raise BadInput(f"{source} is a recorded run; --data, --columns and --params are for models")
        heats = _recorded(run, pair, step)
        figure, folder = _course(heats), run
    else:
        if step is not None:
            raise BadInput(f"--step is for recorded runs, and {source!r} is not one (it has no run.json)")
        heats = [_computed(source, data, columns, pair or "0", params)]
        figure, folder = _single(heats[0], f"{source}, {params}"), Path()
    _save(figure, heats, out or folder / _file_name(heats[0].pair_id, step), force)
    if folder != Path():
        say_next("summary" if is_reference(run) else "report", source)


def _file_name(pair_id: str, step: int | None) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", pair_id)[:100]  # as recorded: it must not lead out of the folder
    return f"heatmap-{name}{'' if step is None else f'-step-{step}'}.png"


def _save(figure: Figure, heats: list[TokenHeat], place: Path, force: bool) -> None:
    from dyn_probe.trace.failures import naming

    _check_file(place, force, "")
    with naming(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(place, dpi=150)
    _say(heats[-1])
    typer.echo(f"Heat map: {place}")


def _check_file(place: Path | None, force: bool, source: str) -> None:
    from dyn_probe.trace.references import refuse_beside

    if place is None:
        refuse_beside(source, "heat map", "a file")
        return
    if place.suffix.lower() not in SUFFIXES:
        raise BadInput(f"--out must be a file name ending in {', '.join(SUFFIXES)}; got {place}")
    if place.exists() and not force:
        raise BadInput(f"{place} exists; write --force to replace it, or name another file with --out")


def _recorded(run: Path, pair: str | None, step: int | None) -> list[TokenHeat]:
    """The recorded maps of one pair of a run, by step; of one step if it is named."""
    from dyn_probe.report.unfit import naming_runs
    from dyn_probe.token_analysis import named_pair, recorded_heats
    from dyn_probe.trace.reader import load_trace

    tokens = load_trace(run).tokens
    if tokens.empty:
        raise BadInput(f"{run} holds no token heat maps; record with --tokens-every N, or name a model and its --data")
    with naming_runs([run]):
        heats = recorded_heats(tokens, named_pair(tokens, pair))
    found = [heat for heat in heats if step is None or heat.step == step]
    if not found:
        steps = ", ".join(str(heat.step) for heat in heats)
        raise BadInput(f"pair {heats[0].pair_id} has no map at step {step}; recorded steps: {steps}")
    return found


def _computed(model: str, data: str | None, columns: str, pair: str, params: str) -> TokenHeat:
    if data is None:
        raise BadInput(
            f"{model!r} is not a recorded run (it has no run.json); for a model, name the pairs: "
            f"dyn-probe heatmap {model} --data FILE --pair {pair}"
        )
    from dyn_probe.data.names import check_names

    check_names(data, model)  # before torch is loaded

    from rich.progress import Progress

    from dyn_probe.train.heat import pair_heat

    with Progress(transient=True) as progress:
        task = progress.add_task("token gradients", total=None)
        return pair_heat(
            model,
            data,
            pair,
            params,
            columns=columns,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            say=typer.echo,
        )


def _course(heats: list[TokenHeat]) -> Figure:
    from dyn_probe.report.token_draw import heats_figure, spread_steps

    return heats_figure(spread_steps(heats, 9)) if len(heats) > 1 else _single(heats[0])


def _single(heat: TokenHeat, title: str = "") -> Figure:
    from dyn_probe.report.token_draw import heat_figure

    return heat_figure(heat, f"pair {heat.pair_id}, {title}" if title else "")


def _say(heat: TokenHeat) -> None:
    """The split of the inner product and the most negative counterparts, in words."""
    from dyn_probe.token_analysis import counterparts, region_inner, visible

    typer.echo(f"pair {visible(heat.pair_id)}: <g_w,g_l> = {heat.total:.4g}")
    for name, value in region_inner(heat).items():
        typer.echo(f"  {name:6} the first differing token {value:12.4g}")
    low = sorted((one for one in counterparts(heat) if one.significant), key=lambda one: one.cosine)[:5]
    for one in low:
        typer.echo(f"  significant: {visible(one.chosen)} / {visible(one.rejected)}  cosine {one.cosine:.3f}")
