"""The kept cells as tables: the page of results of a device, and the short table of the docs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cost.cells import DEFAULT, GOALS
from cost.kinds import KINDS
from cost.peers import PEERS

RESULTS = Path(__file__).resolve().parents[1] / "results"
Kept = dict[str, Any]
HEAD = (
    "kind of step", "s per step", "ratio", "rounds", "goal", "ATen calls", "host reads", "kernels", "device stops",
    "peak memory", "error",
)  # fmt: skip


ABOUT = """\
Random weights, random pairs without padding, half of every row prompt. A step is forward, backward and AdamW.
Kinds of step take turns within a round (on a GPU with six steps in a row, as in training, where the host runs
ahead of the device); seconds are medians, ratios are to the plain step of the same round (median, smallest and
largest). Before the clock starts, every kind's norms and inner product of one pair are compared with plain
autograd in float64 (error: norms relative to themselves, inner products to the norms; in bfloat16 it is the
rounding of the model's own forward and backward). Host reads are calls whose answer the host waits for, device
stops its waits for the device; peak memory is the high-water mark of the program (on a GPU: of the device) while a
step ran, relative to the plain step's."""


def kept_cells(path: Path) -> list[Kept]:
    """The cells of a file of JSON lines, the last of each name; an empty list where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list({one["cell"]: one for one in map(json.loads, lines)}.values())


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """In Markdown."""
    lines = [tuple(head), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines)


def title(cell: str) -> str:
    """A cell's name in words."""
    kind, *rest = cell.split(":")
    if kind == "loops":
        return f"{rest[0]}, {rest[1]} tokens, {rest[2]} pairs, {rest[3]}: the reference loop beside TRL's DPOTrainer"
    if kind == "maps":
        return f"{rest[0]}, {rest[2]} + {rest[2]} response tokens after {rest[1]}, {rest[3]}: token maps"
    trained = "all weights" if rest[0] == "all" else "LoRA"
    return f"{kind}, {trained}, {rest[1]} tokens, {rest[2]} pairs, {rest[3]}"


def row(cell: str, name: str, found: Kept) -> tuple[str, ...]:
    """One kind of step of a cell."""
    if "ratio" not in found:
        return (name, found["why"], *[""] * (len(HEAD) - 2))
    goal = GOALS.get((cell, name))
    reached = "" if goal is None else f"≤ {goal:g}: {'met' if found['ratio'] <= goal else 'missed'}"
    spread = "" if name in ("plain", "TRL", "token_gram") else f"{found['least']:.2f} to {found['most']:.2f}"
    counts = tuple(f"{found[key]:,}" if key in found else "" for key in ("aten", "reads", "kernels", "stops"))
    memory = f"{found['memory']:.3f}" if found.get("memory") else ""
    if found.get("beyond_mib") is not None:
        memory = f"{found['beyond_mib']:,.0f} MiB beyond the model"
    error = f"{found['error']:.0e}" if found.get("error") is not None else ""
    share = f" ({found['recorded']} of {found['steps']} steps recorded)" if "recorded" in found else ""
    return (name + share, f"{found['seconds']:.3g}", f"{found['ratio']:.2f}", spread, reached, *counts, memory, error)


def section(one: Kept) -> str:
    """One cell with its table."""
    device = one["device"]
    said = [f"{one['rounds']} rounds on {device['name']}, torch {device['torch']}."]
    if one.get("same_batches") is not None:
        said.append(f"Batches are {'the same, token by token' if one['same_batches'] else 'NOT the same'}.")
    if "difference" in one:
        said.append(f"The answers differ by {one['difference']:.0e} of the largest entry.")
    rows = [row(one["cell"], name, found) for name, found in one["kinds"].items()]
    used = [k for k in range(len(HEAD)) if any(line[k] for line in rows)]
    return f"### {title(one['cell'])}\n\n{' '.join(said)}\n\n" + table(
        [HEAD[k] for k in used], [[line[k] for k in used] for line in rows]
    )


def missing(kept: list[Kept], kind: str) -> str:
    """Which default cells have not been measured; "" where all have."""
    there = {one["cell"] for one in kept}
    names = [cell.name for cell in DEFAULT[kind] if cell.name not in there]
    return f"Not measured yet: {', '.join(f'`{name}`' for name in names)}." if names else ""


def page(kept: list[Kept], kind: str, earlier: str) -> str:
    """The results of one kind of device as Markdown, with the text of what was measured before.

    Args:
        kind: cpu, cuda.
    """
    left_out = "\n".join(f"- {name}: {peer.leaves_out}." for name, peer in PEERS.items())
    said = "\n".join(f"- {name}: {what}." for name, (_, what) in KINDS.items() if name not in PEERS)
    parts = [
        f"# What recording costs, on a {'CPU' if kind == 'cpu' else 'GPU'}",
        f"```console\npython benchmarks/run.py --device {kind}\n```",
        f"{ABOUT}\n\nKinds of step:\n\n{said}",
        missing(kept, kind),
        *map(section, kept),
        f"What the peers leave out:\n\n{left_out}",
        earlier,
    ]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def short_table(kept: list[Kept]) -> str:
    """For the docs: one line a cell, the ratios of what was measured in it."""
    names = (
        "recorded",
        "one pass",
        "previous metric",
        "with full Gram",
        "default",
        "normalised",
        "two backwards per pair",
        *PEERS,
    )
    chosen = [one for one in kept if not one["cell"].startswith(("loops", "maps"))]
    used = [name for name in names if any("ratio" in one["kinds"].get(name, {}) for one in chosen)]
    rows = []
    for one in chosen:
        kinds = one["kinds"]
        rows.append(
            (title(one["cell"]), f"{kinds['plain']['seconds']:.3g}", *(_ratio(kinds.get(name)) for name in used))
        )
    return table(("cell", "plain, s", *used), rows)


def loops_line(kept: list[Kept]) -> str:
    """For the docs: the reference loop's own step beside TRL's; "" where they were not measured."""
    found = [one for one in kept if one["cell"].startswith("loops")]
    return " ".join(
        f"The reference loop's own step takes {_ratio(one['kinds']['reference loop'])} of TRL's `DPOTrainer` on the "
        f"same batches ({title(one['cell']).partition(':')[0]}; recording every pair: "
        f"{_ratio(one['kinds']['reference loop, every pair'])} of TRL's plain step, "
        f"{_ratio(one['kinds']['TRL, every pair'])} attached to TRL)."
        for one in found
    )


def _ratio(found: Kept | None) -> str:
    if found is None:
        return ""
    if "ratio" not in found:
        return "–"
    return f"{found['ratio']:.2f} ({found['least']:.2f}–{found['most']:.2f})"
