"""A model's answers to prompts, in the form that AlpacaEval reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dyn_probe.data.models import load_model
from dyn_probe.errors import BadInput
from dyn_probe.mass.initial import continuations
from dyn_probe.mass.observed_model import position_limit
from dyn_probe.trace.failures import naming
from dyn_probe.train.outputs.prompts import read_prompts

SAVED = "model"
"""Folder of a recorded run that holds its trained model (``record --save``)."""


def model_place(name: str) -> tuple[str, str]:
    """The model that a name stands for, and what its outputs are called: that of a recorded run under the run's name.

    Raises:
        BadInput: a recorded run whose trained model was not kept.
    """
    folder = Path(name).expanduser()
    if not (folder / "run.json").is_file():
        return name, folder.name if folder.is_dir() else name
    if not (folder / SAVED).is_dir():
        raise BadInput(
            f"the run in {folder} did not keep its trained model; record it with --save, which leaves it in "
            f"{folder / SAVED}, or name the folder of a checkpoint that --keep-checkpoints left"
        )
    return str(folder / SAVED), folder.resolve().name


def generate_outputs(
    name: str,
    data: str,
    *,
    seed: int | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    batch_size: int = 8,
    count: int | None = None,
    generator: str = "",
    dtype: str = "float32",
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """``instruction``, ``output`` and ``generator`` of every prompt, and ``cut_off``: whether it was longer.

    Args:
        name: a recorded run, or a model as for ``record --model``.
        data: as for ``read_prompts``.
        seed: samples from the model's full distribution; greedy without it.
        generator: what the outputs are called; by default the run's or model's name.

    Raises:
        BadInput: the model, the data or a value cannot be used, or no prompt leaves room for an answer.
    """
    place, called = model_place(name)
    model, tokenizer = load_model(place, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    asked = read_prompts(data, tokenizer, count)
    limit = position_limit(model)
    ids = [tokenizer(one.text)["input_ids"] for one in asked]
    long = [len(row) for row in ids if limit is not None and len(row) + max_new_tokens > limit]
    if long:
        raise BadInput(
            f"{len(long)} prompts (up to {max(long)} tokens) and --max-new-tokens {max_new_tokens} exceed the model's "
            f"{limit} positions; write a smaller --max-new-tokens, or leave these prompts out"
        )
    answers = continuations(
        model, tokenizer, ids, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed,
        temperature=temperature, progress=progress,
    )  # fmt: skip
    return [
        {"instruction": one.instruction, "output": text.strip(), "generator": generator or called, "cut_off": cut}
        for one, (text, cut) in zip(asked, answers, strict=True)
    ]


def write_outputs(path: Path, rows: list[dict[str, Any]], force: bool = False) -> None:
    """The rows as a JSON array.

    Raises:
        BadInput: the file exists and may not be replaced.
        WriteFailed: the system refuses to write it.
    """
    if path.exists() and not force:
        raise BadInput(f"{path} exists; write --force to replace it, or name another file with --out")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", errors="replace")
