"""``dyn-probe pairs``: the pairs of a run, ranked, with their numbers and texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyn_probe.errors import BadInput, unknown

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("table", "csv", "json")
SHOWN = ("pair_id", "step", "recorded_change_chosen", "recorded_change_rejected", "case", "grad_cosine")
"""`case` stands for the column of cases of the one basis that all listed pairs have."""
TEXTS = ("prompt", "chosen", "rejected")


def pairs(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Trace folder.")],
    by: Annotated[
        str | None,
        typer.Option(
            help="Ranking; an unknown name lists them all.",
            show_default="run, the measured fall of chosen per token to the end of the run, where it was recorded",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of pairs.")] = 20,
    step: Annotated[
        int | None,
        typer.Option(help="Rank the pairs of this recorded step.", show_default="the last step of each pair"),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="table, csv or json; csv and json contain every column.")
    ] = "table",
) -> None:
    """List the pairs whose chosen response falls furthest (or any other ranking), with their numbers and their text."""
    from dyn_probe.report.export.cells import terminal_csv, terminal_json
    from dyn_probe.report.frames import half_errors
    from dyn_probe.report.ranked import RANKINGS, chosen_ranking, ranked_pairs, ranking_words
    from dyn_probe.trace.reader import load_trace

    if form not in FORMATS:
        raise BadInput(unknown("format", form, FORMATS))
    trace = load_trace(run)
    found, words = ranked_pairs(trace, by, top, step), f"Ranked by {ranking_words(trace, by)}"
    if form != "table":
        typer.echo(words, err=True)
    if form == "csv":
        typer.echo(terminal_csv(found), nl=False)
    elif form == "json":
        typer.echo(terminal_json(found.to_json(orient="records", indent=2, force_ascii=False)))
    else:
        _print_table(found, RANKINGS[chosen_ranking(trace, by)].column, words, half_errors(trace))


def _print_table(found: pd.DataFrame, column: str, words: str, errors: dict[str, float]) -> None:
    """Numbers in a line, texts below them."""
    from rich.console import Console

    from dyn_probe.report.frames import half_error
    from dyn_probe.report.ranked import shown_case
    from dyn_probe.report.summary import safe

    console = Console(highlight=False)
    console.print(f"[bold]{safe(words)}[/]")
    case = shown_case(found)
    shown = [column, *(case if name == "case" else name for name in SHOWN)]
    for place, (_, row) in enumerate(found.iterrows(), start=1):
        known = {name: (row[name], half_error(errors, name, row.to_dict())) for name in dict.fromkeys(shown)}
        numbers = "  ".join(f"{name} {_written(*value)}" for name, value in known.items())
        console.print(f"\n[bold]{place:3d}[/]  {safe(numbers)}", soft_wrap=True)
        for name in TEXTS:
            console.print(f"     [dim]{name:9}[/]{safe(_shortened(row[name]))}", soft_wrap=True)


def _written(value: object, error: float) -> str:
    from dyn_probe.report.verdicts.verdict import within

    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if error != error else within(value, error, 4).replace("−", "-")


def _shortened(value: object, most: int = 160) -> str:
    text = " ".join(str(value).split()) if isinstance(value, str) else "(no text recorded)"
    return text if len(text) <= most else text[: most - 1] + "…"
