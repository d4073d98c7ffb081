"""``dyn-probe data``: what would be trained, before anything is."""

from __future__ import annotations

from typing import Annotated

import typer
from dyn_probe_cli.next_step import say_next


def data(
    name: Annotated[str, typer.Argument(metavar="DATA", help="A file, folder or hub id, as in record --data.")],
    model: Annotated[str, typer.Option(help="Model whose tokenizer is used, as in record --model.")] = "built-in",
    columns: Annotated[
        str, typer.Option(metavar="PART=COLUMN,…", help="As in record --columns.", show_default="the shape's")
    ] = "",
    max_length: Annotated[int, typer.Option(min=2, help="Most tokens of prompt and response together.")] = 1024,
    truncation: Annotated[
        str, typer.Option(help="Which end of an overlong row is kept: keep_start or keep_end.")
    ] = "keep_start",
    max_pairs: Annotated[
        int | None, typer.Option(min=1, help="Read at most this many rows.", show_default="all")
    ] = None,
    strict_data: Annotated[
        bool, typer.Option("--strict-data", help="Stop if any row of the data cannot be used.")
    ] = False,
    pairs: Annotated[int, typer.Option(min=0, help="How many pairs to show token by token.")] = 3,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Show how a preference file is read: its shape, skipped rows, lengths and truncation, and pairs token by token."""
    from rich.console import Console

    from dyn_probe.data.names import check_names

    check_names(name, model)  # before torch is loaded

    from dyn_probe.data.inspect import inspect_data
    from dyn_probe.data.prepared import Reading
    from dyn_probe.data.printing import inspect_lines

    found = inspect_data(
        name, model, reading=Reading(columns, max_pairs, strict_data), max_length=max_length, truncation=truncation,
        pairs=pairs, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    console = Console(highlight=False)
    for line in inspect_lines(found):
        console.print(line, soft_wrap=not console.is_terminal)
    typer.echo()
    given = {"--model": (model, "built-in"), "--columns": (columns, ""), "--max-length": (max_length, 1024)}
    say_next("record", "--data", name, *(str(x) for k, (v, usual) in given.items() if v != usual for x in (k, v)))
