"""What run.json says about a run, as plain label and text; anything may be missing, nothing is trusted."""

from __future__ import annotations

import ast
import math
from typing import TYPE_CHECKING, Any

from dyn_probe.report.frames import numbers

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

FACTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Model", ("model.name", "model.path", "config.model")),
    ("Parameters", ("model.parameters", "model.trained_parameters", "certificate.parameters")),
    ("Data", ("data.name", "data.path", "config.data")),
    ("Objective", ("objective.name", "config.objective")),
    ("Shaping", ("objective.shaping", "config.shaping")),
    ("Margin and accuracy of", ("objective.score.meaning",)),
    ("β", ("objective.hyper.beta", "objective.beta", "config.beta")),
    ("Learning rate", ("config.lr", "config.learning_rate", "optimizer.lr")),
    ("Optimizer", ("config.optimizer", "optimizer.name")),
    ("Schedule", ("config.schedule",)),
    ("Clipped at norm", ("config.max_grad_norm",)),
    ("Batch size", ("config.batch_size",)),
    ("Processes", ("processes.count",)),
    ("Seed", ("config.seed",)),
    ("Command", ("command",)),
    ("Recorded", ("created",)),
    ("dyn-probe", ("dyn_probe_version",)),
)
"""Label → places of run.json where it may stand; the first that is there counts."""


def look_up(manifest: dict[str, Any], place: str) -> Any:
    """The value at "a.b.c" of nested mappings, None if there is none."""
    value: Any = manifest
    for key in place.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def plain_text(value: Any) -> str:
    """A JSON value as one line of text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "—"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}".replace("-", "−") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain_text(entry)}" for key, entry in value.items()) or "—"
    if isinstance(value, list | tuple):
        return ", ".join(plain_text(entry) for entry in value) or "—"
    return str(value)


def shaping_options(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Shaping → its options as the run was recorded with; empty where run.json does not say.

    An entry is a mapping of name and options, or the text ``NAME: {OPTION: VALUE, …}``.
    """
    entries = look_up(manifest, "objective.shaping")
    read = map(_shaping, entries) if isinstance(entries, list) else ()
    return {name: options for name, options in read if name}


def _shaping(entry: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, dict):
        name, options = entry.get("name"), entry.get("options")
    else:
        name, _, text = str(entry).partition(": ")
        try:
            options = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            options = None
    return str(name or ""), options if isinstance(options, dict) else {}


def facts(trace: Trace) -> list[tuple[str, str]]:
    """The main facts in reading order: label and text, only those that are known."""
    found = []
    for label, places in FACTS:
        values = [value for place in places if (value := look_up(trace.manifest, place)) not in (None, "", [], {})]
        if label == "Shaping" and (chosen := shaping_options(trace.manifest)):
            found.append((label, "; ".join(_written(name, options) for name, options in chosen.items())))
        elif values and not isinstance(values[0], dict):
            found.append((label, plain_text(values[0])))
    for position, row in enumerate(_size(trace)):
        found.insert(min(len(found), 3 + position), row)
    return found


def _written(name: str, options: dict[str, Any]) -> str:
    """A shaping as one types it: ``gate-seq:form=value,alpha=50``."""
    values = (f"{key}={_typed(value)}" for key, value in options.items())
    return f"{name}:{','.join(values)}" if options else name


def _typed(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _size(trace: Trace) -> list[tuple[str, str]]:
    steps = numbers(trace.pairs if len(trace.pairs) else trace.steps, "step")
    if not len(steps):
        return [("Recorded rows", "none")]
    distinct = len(set(steps.tolist()))
    ranks = trace.pairs["rank"].nunique() if len(trace.pairs) else 1
    several = f", {ranks} processes" if ranks > 1 else ""
    return [
        ("Steps", f"{int(steps.min())} to {int(steps.max())}, {distinct:,} recorded{several}"),
        ("Pairs", f"{trace.pairs['pair_id'].nunique():,} pairs, {len(trace.pairs):,} rows"),
    ]


def everything(manifest: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """All of run.json as (path, text), lists and leaves as one line each."""
    rows: list[tuple[str, str]] = []
    for key, value in manifest.items():
        place = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            rows += everything(value, f"{place}.")
        elif isinstance(value, list) and len(value) > 20:
            rows.append((place, f"{plain_text(value[:20])}, … ({len(value):,} entries)"))
        else:
            rows.append((place, plain_text(value)))
    return rows


def title(trace: Trace) -> str:
    """The run's name: its folder."""
    return trace.path.resolve().name or str(trace.path)
