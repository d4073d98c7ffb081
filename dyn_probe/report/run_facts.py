"""What run.json says about a run, as plain label and text; anything may be missing, nothing is trusted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dyn_probe.report.frames import finite, numbers
from dyn_probe.report.pair_columns import CEILING
from dyn_probe.trace.run_fields import Manifest, ShapingInfo

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

Fact = Callable[[Manifest], Any]


def option(name: str) -> Fact:
    """An option that the run was recorded with."""
    return lambda about: about.config.get(name)


STATUS_WORDS: dict[str, str] = {"closed": "finished", "stopped": "stopped early"}
"""Status of run.json → what the reader is told; others as they are."""

FACTS: dict[str, tuple[Fact, ...]] = {
    "Model": (lambda about: about.model.name, option("model")),
    "Parameters": (lambda about: about.model.parameters, lambda about: about.model.trained_parameters),
    "Data": (lambda about: about.data.name, option("data")),
    "Objective": (lambda about: about.objective.name, option("objective")),
    "Shaping": (lambda about: "; ".join(map(shaping_text, about.objective.shaping)), option("shaping")),
    "Margin and accuracy of": (lambda about: about.objective.score and about.objective.score.meaning,),
    "β": (lambda about: about.objective.hyper.get("beta"), option("beta")),
    "Learning rate": (option("lr"),),
    "Optimizer": (option("optimizer"),),
    "Schedule": (option("schedule"),),
    "Clipped at norm": (option("max_grad_norm"),),
    "Batch size": (option("batch_size"),),
    "Processes": (lambda about: about.processes.count,),
    "Seed": (option("seed"),),
    "Command": (lambda about: about.command,),
    "Recorded": (lambda about: about.created,),
    "dyn-probe": (lambda about: about.dyn_probe_version,),
}
"""Label → where run.json may say it; the first that says anything counts."""


def known(about: Manifest, label: str) -> Any:
    """What a run says under a label of FACTS; None where it says nothing."""
    values = (read(about) for read in FACTS[label])
    return next((value for value in values if value not in (None, "", [], {}) and not isinstance(value, dict)), None)


def shaping_text(shaping: ShapingInfo) -> str:
    """A shaping as one types it: ``gate-seq:form=value,alpha=50``."""
    values = (f"{key}={_typed(value)}" for key, value in shaping.options.items())
    return f"{shaping.name}:{','.join(values)}" if shaping.options else shaping.name


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


def shaping_options(about: Manifest) -> dict[str, dict[str, Any]]:
    """Shaping → its options as the run was recorded with; empty where run.json does not say."""
    return {one.name: one.options for one in about.objective.shaping}


def ceiling(about: Manifest) -> float:
    """C of the run's AdaDPO; the default where it has none."""
    found = next((options["ceiling"] for options in shaping_options(about).values() if "ceiling" in options), CEILING)
    return float(found) if isinstance(found, int | float) and found > 0 else CEILING


def facts(trace: Trace) -> list[tuple[str, str]]:
    """The main facts in reading order: label and text, only those that are known."""
    about = trace.about
    found = [(label, plain_text(value)) for label in FACTS if (value := known(about, label)) is not None]
    for position, row in enumerate(_size(trace)):
        found.insert(min(len(found), 3 + position), row)
    return found


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


def last_step(trace: Trace) -> int | None:
    """The last step of which anything was recorded; None before the first row."""
    steps = np.concatenate([finite(numbers(frame, "step")) for frame in (trace.pairs, trace.steps)])
    return int(steps.max()) if len(steps) else None
