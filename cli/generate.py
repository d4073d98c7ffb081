"""``dyn-probe generate``: answers of a model to prompts, for a judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def generate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|RUN", help="A model as for record, or a run recorded with --save.")
    ],
    data: Annotated[
        str, typer.Option(help="Prompts: a file with a column instruction or prompt, or any data of record.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File of the outputs.")] = Path("outputs.json"),
    seed: Annotated[
        int | None, typer.Option(min=0, help="Sample with this seed.", show_default="greedy, without sampling")
    ] = None,
    temperature: Annotated[float, typer.Option(min=1e-6, help="Temperature of the sampling.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per batch.")] = 8,
    max_prompts: Annotated[
        int | None, typer.Option(min=1, help="Answer at most this many prompts.", show_default="all")
    ] = None,
    generator: Annotated[
        str, typer.Option(help="Name of the generator in the outputs.", show_default="name of the run or model")
    ] = "",
    dtype: Annotated[str, typer.Option(help="Type of the weights: float32, float64, bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Answer prompts with a model, in the form that AlpacaEval reads (instruction, output, generator), and print what
    needs no judge: lengths, repetition and distinct n-grams. A judge's verdicts on the outputs are read by
    report and summary with --judged FILE."""
    from dyn_probe.errors import BadInput
    from dyn_probe.report.outputs.text_numbers import text_lines, text_numbers
    from dyn_probe.train.outputs.generating import generate_outputs, write_outputs

    if out.exists() and not force:
        raise BadInput(f"{out} exists; write --force to replace it, or name another file with --out")
    rows = generate_outputs(
        model, data, seed=seed, temperature=temperature, max_new_tokens=max_new_tokens, batch_size=batch_size,
        count=max_prompts, generator=generator, dtype=dtype, device=device,
    )  # fmt: skip
    write_outputs(out, rows, force)
    typer.echo("\n".join([*text_lines(text_numbers(rows)), f"Outputs: {out}"]))
