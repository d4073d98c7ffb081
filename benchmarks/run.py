"""What recording costs, side by side: plain and recorded steps, other ways to the same numbers, the loop beside TRL's.

    python benchmarks/run.py [--device cpu|cuda] [--minutes 20] [--rounds 5]
    python benchmarks/run.py --shape llama-3.2-1b --length 256 --pairs 4 --precision bfloat16 --lora
    python benchmarks/run.py --page

Without a shape the default cells are measured, the most telling first: on a CPU in about twenty minutes, on a GPU in
six.
Every cell is added to a file of JSON lines when it is done (--out), and one that stands there is not measured again, so
that a run that was stopped goes on with the same command. At the end the page of results and the figures are written
(also by --page alone). Peers are optional packages: `pip install torchjd opacus scipy opt-einsum`.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cost.cells import DEFAULT, AnyCell, Cell, Loops, Maps
from cost.growth import growth, save
from cost.kinds import KINDS
from cost.loops import measure_loops
from cost.maps import measure_maps
from cost.measured import measure
from cost.page import RESULTS, kept_cells, page, section
from cost.shapes import PRECISIONS, SHAPES

MINUTES = {"cpu": 20.0, "cuda": 6.0}
IMAGES = RESULTS.parents[1] / "docs" / "images"
FILES = {"cpu": "cpu", "cuda": "gpu"}


def asked(options: argparse.Namespace) -> list[AnyCell]:
    """The cells that the command line names; the default ones where it names none."""
    if options.shape is None:
        named = (options.length, options.pairs, options.precision, options.kinds)
        if options.lora or any(one is not None for one in named):
            raise SystemExit(
                f"--length, --pairs, --precision, --lora, --kinds belong to a --shape: {', '.join(SHAPES)}"
            )
        return [cell for cell in DEFAULT[options.device] if options.only is None or options.only in cell.name]
    precision = options.precision or ("float32" if options.device == "cpu" else "bfloat16")
    trained = "lora" if options.lora else "all"
    kinds = tuple(options.kinds) if options.kinds else ("recorded", "one pass")
    return [
        Cell(options.shape, trained, length, pairs, precision, kinds)
        for length in options.length or [128]
        for pairs in options.pairs or [4]
    ]


def of_cell(cell: AnyCell, device: str, rounds: int, seconds: float) -> dict[str, Any]:
    """What is kept of a cell of any sort."""
    if isinstance(cell, Loops):
        return measure_loops(cell, device, rounds, seconds)
    return (
        measure_maps(cell, device, rounds, seconds)
        if isinstance(cell, Maps)
        else measure(cell, device, rounds, seconds)
    )


def measure_all(cells: Sequence[AnyCell], options: argparse.Namespace, out: Path) -> None:
    """Measure what is not kept yet, until the time is over; a cell begins only while there is some left."""
    began, there = time.monotonic(), {one["cell"] for one in kept_cells(out)}
    left = [cell for cell in cells if options.again or cell.name not in there]
    for number, cell in enumerate(left):
        spent = (time.monotonic() - began) / 60
        if spent >= options.minutes:
            print(f"{spent:.0f} minutes are over; the same command goes on with the other {len(left) - number} cells")
            return
        share = 60 * (options.minutes - spent) / (len(left) - number)
        found = of_cell(cell, options.device, options.rounds, share)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(f"{section(found)}\n\n({found['seconds']:.0f} s)\n", flush=True)
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()


def write_page(kind: str, out: Path) -> None:
    """The page and the figures of one kind of device, where cells were kept."""
    kept, name = kept_cells(out), FILES[kind]
    earlier = (RESULTS / "earlier" / f"{name}.md").read_text(encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(page(kept, kind, earlier), encoding="utf-8")
    if kept:
        save(growth(kept, kind), IMAGES / f"cost-{name}.png")
    print(f"benchmarks/results/{name}.md; next: python docs/generate.py")


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--minutes", type=float, help="no cell begins after so many (default: 20 on a CPU, 6 on a GPU)")
    parser.add_argument("--rounds", type=int, default=5, help="most rounds of a cell; 2 at least")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, on a CPU")
    parser.add_argument(
        "--out", type=Path, help="JSON lines of the cells (default: benchmarks/results/{cpu,gpu}.jsonl)"
    )
    parser.add_argument("--only", metavar="WORD", help="those of the default cells whose name has this word")
    parser.add_argument("--again", action="store_true", help="measure cells that are kept once more")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--length", type=int, nargs="+", metavar="TOKENS")
    parser.add_argument("--pairs", type=int, nargs="+")
    parser.add_argument("--precision", choices=PRECISIONS)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--kinds", nargs="+", choices=[kind for kind in KINDS if kind != "plain"])
    parser.add_argument("--page", action="store_true", help="only write the pages and figures of what is kept")
    found = parser.parse_args(arguments)
    found.minutes = MINUTES[found.device] if found.minutes is None else found.minutes
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then write the page."""
    options = options_of(arguments)
    out = options.out or RESULTS / f"{FILES[options.device]}.jsonl"
    if options.page:
        for kind, name in FILES.items():
            write_page(kind, RESULTS / f"{name}.jsonl")
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda needs a GPU and a CUDA build of torch; write --device cpu")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    measure_all(asked(options), options, out)
    if options.out is None:
        write_page(options.device, out)


if __name__ == "__main__":
    sys.exit(main())
