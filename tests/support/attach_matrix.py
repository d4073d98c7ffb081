"""The combinations of settings under which trainers of TRL are recorded: which there are, what one gave, and the page.

``python attach_matrix.py RESULTS PAGE`` writes the page from the results of the tests that ran (``note``).
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = "DYN_PROBE_MATRIX"
"""Environment variable: the file that results are appended to."""
EXACT, REFUSED = "exact", "refused: "
LOSSES: Mapping[str, tuple[str, dict[str, Any]]] = {
    **{f"DPO {name}": ("dpo", dict(loss_type=[name])) for name in (
        "sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down",
        "discopop", "sft", "sigmoid_norm",
    )},
    "DPO exo_pair": ("dpo", dict(loss_type=["exo_pair"], label_smoothing=1e-3)),
    "DPO robust": ("dpo", dict(loss_type=["robust"], label_smoothing=0.1)),
    "DPO sigmoid + 0.3 sft": ("dpo", dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.3])),
    "CPO": ("cpo", dict()),
    "CPO hinge": ("cpo", dict(loss_type="hinge")),
    "CPO ipo": ("cpo", dict(loss_type="ipo")),
    "SimPO": ("cpo", dict(loss_type="simpo", cpo_alpha=0.0)),
    "AlphaPO": ("cpo", dict(loss_type="alphapo", alpha=0.25)),
    "ORPO": ("orpo", dict()),
    "KTO": ("kto", dict(train_sampling_strategy="sequential")),
    "KTO apo_zero_unpaired": ("kto", dict(loss_type="apo_zero_unpaired", train_sampling_strategy="sequential")),
}  # fmt: skip
WHOLE = ("DPO sigmoid", "DPO ipo", "DPO sigmoid + 0.3 sft", "CPO", "SimPO", "ORPO", "KTO")
"""Losses that are tried with every combination of the other settings."""
WEIGHTS = ("full", "LoRA")
PRECISIONS: Mapping[str, dict[str, Any]] = {
    "float32": {}, "bf16=True": dict(bf16=True), "bfloat16 weights": dict(dtype="bfloat16"),
    "fp16=True": dict(fp16=True),
}  # fmt: skip
NEEDS_GPU = "fp16=True"
CHECKPOINTING: Mapping[str, dict[str, Any]] = {
    "none": {},
    "default": dict(gradient_checkpointing=True),
    "reentrant": dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}),
}
Cell = tuple[str, str, str, str]
AXES: tuple[tuple[str, ...], ...] = (
    tuple(LOSSES), WEIGHTS, tuple(name for name in PRECISIONS if name != NEEDS_GPU), tuple(CHECKPOINTING)
)  # fmt: skip


def covering(axes: Sequence[Sequence[str]]) -> list[Cell]:
    """Cells in which any two values of two axes meet at least once; the cell with most new meetings first."""
    cells = list(itertools.product(*axes))
    missing = {meeting for cell in cells for meeting in _meetings(cell)}
    chosen: list[Cell] = []
    while missing:
        best = max(cells, key=lambda cell: len(missing & _meetings(cell)))
        chosen.append(best)  # type: ignore[arg-type]
        missing -= _meetings(best)
    return chosen


def _meetings(cell: Sequence[str]) -> set[tuple[int, str, int, str]]:
    return {(i, cell[i], j, cell[j]) for i, j in itertools.combinations(range(len(cell)), 2)}


def others() -> Iterator[Cell]:
    """What is left of the product over ``WHOLE``."""
    covered = set(covering(AXES))
    return (cell for cell in itertools.product(WHOLE, *AXES[1:]) if cell not in covered)


def on_gpu() -> list[Cell]:
    """The cells that need a GPU."""
    return [(loss, weights, NEEDS_GPU, "default") for loss in WHOLE for weights in WEIGHTS]


def name_of(cell: Cell) -> str:
    """For the id of a test."""
    return ", ".join(cell)


def note(table: str, cell: Sequence[str], words: str) -> None:
    """What a test found: ``exact``, or the words of a refusal; appended to ``DYN_PROBE_MATRIX`` where that is set."""
    if path := os.environ.get(RESULTS):
        import trl

        found = {"table": table, "cell": list(cell), "words": words, "trl": trl.__version__}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


PACKAGES = ("trl", "transformers", "accelerate", "peft", "torch")


def page(results: Path) -> str:
    """The page of docs from the results."""
    everything = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    rows = [one for one in everything if one["trl"] == version("trl")]
    others = [one for one in everything if one["trl"] != version("trl") and one["table"] == "settings"]
    found = {table: {tuple(one["cell"]): one["words"] for one in rows if one["table"] == table}
             for table in ("settings", "launchers", "refusals")}  # fmt: skip
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in PACKAGES)
    parts = [_head(versions, found), _settings(found["settings"]), _versions(others)]
    parts += [_launchers(found["launchers"]), _refusals(found["refusals"])]
    return "\n".join(line for part in parts for line in part) + "\n"


def _head(versions: str, found: Mapping[str, Mapping[Any, str]]) -> list[str]:
    ran = found["settings"]
    exact = sum(words == EXACT for words in ran.values())
    return [
        "# What was recorded exactly",
        "",
        f"Written by `make matrix` from the tests that it ran, with {versions}.",
        f"Of {len(ran)} combinations of settings in one process, {exact} are exact: the rows average to the trainer's "
        "own log (log-probabilities and loss to 1e-4; to 1e-2 where the trainer itself averages in bfloat16), "
        "gradient norms and inner products are those of plain autograd outside the trainer (1e-4; with bfloat16 5e-2), "
        "and the weights after training are bitwise those of a training without the recorder.",
        "",
    ]


def _settings(found: Mapping[Any, str]) -> list[str]:
    columns = [(weights, precision) for weights in WEIGHTS for precision in PRECISIONS]
    lines = [
        "## Settings",
        "",
        "Checkpointing under which a combination was tried and is exact: none, default, reentrant. A dash: not tried. "
        "`gpu`: its tests are marked so, and did not run where this page was written.",
        "",
        "| loss | " + " | ".join(f"{weights}, {precision}" for weights, precision in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for loss in LOSSES:
        texts = []
        for weights, precision in columns:
            tried = {how: found[cell] for how in CHECKPOINTING if (cell := (loss, weights, precision, how)) in found}
            exact = [how for how, words in tried.items() if words == EXACT]
            wrong = [f"{how}: {words}" for how, words in tried.items() if words != EXACT]
            absent = "gpu" if precision == NEEDS_GPU else "–"
            texts.append("; ".join(filter(None, [", ".join(exact), *wrong])) or absent)
        lines.append(f"| {loss} | " + " | ".join(texts) + " |")
    return [*lines, ""]


def _versions(others: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["## Older versions of TRL", "", "| TRL | combinations | of them exact |", "|---|---|---|"]
    for one in sorted({row["trl"] for row in others}):
        words = {tuple(row["cell"]): row["words"] for row in others if row["trl"] == one}
        refused = [said.removeprefix(REFUSED) for said in words.values() if said.startswith(REFUSED)]
        other = {cell: said for cell, said in words.items() if said != EXACT and not said.startswith(REFUSED)}
        wrong = "".join(f"; {name_of(cell)}: {said}" for cell, said in other.items())  # type: ignore[arg-type]
        why = f"; {len(refused)} refused ({'; '.join(dict.fromkeys(refused))})" if refused else ""
        lines.append(f"| {one} | {len(words)} | {len(words) - len(other) - len(refused)}{why}{wrong} |")
    return [*lines, ""] if others else []


def _launchers(found: Mapping[Any, str]) -> list[str]:
    lines = ["## Launchers", "", "| command behind `--` | processes | result |", "|---|---|---|"]
    return [*lines, *(f"| `{cell[0]}` | {cell[1]} | {words} |" for cell, words in found.items()), ""]


def _refusals(found: Mapping[Any, str]) -> list[str]:
    lines = ["## Refused", "", "The training goes on, and one line says:", ""]
    return [*lines, *(f"- {words}" for words in found.values() if "SimpleNamespace" not in words)]


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(page(Path(sys.argv[1])), encoding="utf-8")
