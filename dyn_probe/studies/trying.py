"""The best remedies of a run's fix table, trained from the run's own start: measured beside estimated."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dyn_probe.errors import BadInput
from dyn_probe.report.agreement import spearman
from dyn_probe.report.changes import run_change, run_start
from dyn_probe.report.first_screen.fix_table import Estimate, estimates, fix_table, trl_trainer, why_none
from dyn_probe.report.first_screen.trouble import trouble
from dyn_probe.report.frames import median
from dyn_probe.report.summary import aligned
from dyn_probe.trace.failures import naming
from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.trace.references import refuse_beside
from dyn_probe.train.loop import record
from dyn_probe.train.options.config import OPTIONS, RunConfig
from dyn_probe.train.options.unasked import PROBING
from dyn_probe.train.run import WarmStart

FOLDER = "tried"
RESULT = "tried.json"
BASE = "as-trained"
QUIET: dict[str, Any] = {
    "metric_every": 0, "gram_every": 0, "realised": False, "tokens_every": 0, "mass_every": 0, "checkpoint_every": 0,
    "save": False, "resume": False, "update": False, "keep_checkpoints": 0, "metric": "applied",
    **{name: getattr(RunConfig(), name) for name in PROBING},
}  # fmt: skip
"""What a tried run does not record: its log-probabilities at the end are all that is compared."""


@dataclass(frozen=True)
class Tried:
    """A remedy as it was estimated and as it was measured: medians over the same pairs, nats/token."""

    estimate: Estimate
    chosen: float
    rejected: float

    @property
    def margin(self) -> float:
        """Measured change of chosen minus that of rejected."""
        return self.chosen - self.rejected


def attached(trace: Trace) -> bool:
    """Whether somebody else's loop trained the run, which cannot be started again from here."""
    return "trainer" in trace.manifest or "pretrain_steps" not in trace.about.config


def commands(trace: Trace, rows: Sequence[Estimate]) -> list[str]:
    """What to change in one's own training, a line per remedy: the configuration of the run's trainer, or another."""
    own, lines = trl_trainer(trace), []
    for row in rows:
        needed = row.change.trainer or own
        setting = f"{needed}Config({row.change.trl})" if row.change.trl else f"not in TRL ({row.change.typed})"
        there = f"{needed}Trainer, " if row.change.trl and needed != own else ""
        lines.append(f"{row.words}: {there}{setting}")
    return lines


def try_remedies(
    run: Path,
    top: int = 3,
    steps: int | None = None,
    out: Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
    every: bool = False,
) -> tuple[Trace, list[Tried]]:
    """Train the first remedies of the run's fix table from its own start, on its own pairs, with its own options.

    Args:
        run: folder of a trace that `dyn-probe record` trained.
        top: how many remedies.
        steps: optimizer steps; where these are not the run's own, the run is first trained again for so many, and the
            table is that of the shorter run.
        out: folder of the runs and of tried.json; by default RUN/tried.
        every: all remedies that apply, also those that are estimated to do harm.

    Returns:
        The run that the remedies are compared with, and what became of each.

    Raises:
        BadInput: the run has no fix table, was not trained by `dyn-probe record`, or is a reference trace without
            ``out``.
    """
    if out is None:
        refuse_beside(run, "tried run")
    trace, folder, warm = load_trace(run), out or run / FOLDER, WarmStart()
    if attached(trace):
        raise BadInput(f"{run} was trained by another loop and cannot be restarted from here")
    base = replace(_config(trace), force=force)
    if steps is not None and steps != base.steps:
        say(f"as trained, {steps} steps")
        trace = load_trace(record(replace(base, steps=steps, out=str(folder / BASE)), warm=warm))
        base = replace(base, steps=steps)
    rows = (estimates(trace) if every else fix_table(trace))[: None if every else top]
    if not rows:
        raise BadInput(f"{run} has no fix table: {why_none(trace)}")
    tried = []
    for number, row in enumerate(rows, start=1):
        say(f"{number} of {len(rows)}: {row.words} ({row.change.typed})")
        config = replace(changed(base, trace, row), out=str(folder / row.key), **QUIET)
        config = replace(config, every=max(1, config.steps))
        tried.append(measured(trace, load_trace(record(config, warm=warm)), row))
    save(folder / RESULT, trace, tried)
    return trace, tried


def _config(trace: Trace) -> RunConfig:
    """The configuration that the run was recorded with."""
    saved = {name: value for name, value in trace.about.config.items() if name in OPTIONS}
    return RunConfig(**saved | {"resume": False, "force": False})


def changed(base: RunConfig, trace: Trace, row: Estimate) -> RunConfig:
    """The run's configuration with one remedy."""
    fields = dict(row.change.fields)
    shaping = fields.pop("shaping", ())
    about = trace.about.objective
    if "objective" in fields:
        return replace(base, **fields, shaping=shaping)
    hyper = {**about.hyper, **fields.pop("hyper", {})}
    own = {"objective": about.name, "hyper": hyper, "beta": None, "shaping": (*base.shaping, *shaping)}
    return replace(base, **own | {name: value for name, value in fields.items() if name != "beta"})


def measured(trace: Trace, there: Trace, row: Estimate) -> Tried:
    """What a remedy did to the pairs of the run from the same start: median change per token."""
    start = run_start(trace)
    end = there.final.drop_duplicates("pair_id", keep="last").set_index("pair_id").reindex(start.index)
    found = [
        median(((end[f"logp_{side}"] - start[f"logp_{side}"]) / start[f"len_{side}"]).to_numpy(np.float64))
        for side in ("chosen", "rejected")
    ]
    return Tried(row, *found)


def agreement(trace: Trace, tried: Sequence[Tried]) -> float:
    """Spearman's rank correlation of estimated and measured change of the trouble's side."""
    side = trouble(trace) or "chosen"
    pairs = [(getattr(one.estimate, side), getattr(one, side)) for one in tried]
    return spearman(*(np.array(values, np.float64) for values in zip(*pairs, strict=True)))


def tried_lines(trace: Trace, tried: Sequence[Tried]) -> list[str]:
    """Estimated beside measured as a table with rich markup."""
    side, moved = trouble(trace) or "chosen", run_change(trace)
    assert moved is not None, "a fix table stands on a measured change"
    was = {name: median(moved.side(name)) for name in ("chosen", "rejected")}
    heads = ("", f"Δ {side}, estimated", "measured", "margin, estimated", "measured", "type")
    rows = [
        (
            one.estimate.words,
            f"{getattr(one.estimate, side):+.3f} ± {one.estimate.error:.3f}",
            f"{getattr(one, side):+.3f}",
            f"{one.estimate.chosen - one.estimate.rejected:.2f} ± {one.estimate.margin_error:.2f}",
            f"{one.margin:.2f}",
            one.estimate.change.typed,
        )
        for one in tried
    ]
    base = ("As trained", "", f"{was[side]:+.3f}", "", f"{was['chosen'] - was['rejected']:.2f}", "")
    lines = [*aligned([heads, base, *rows]), "Medians over the same pairs, nats/token."]
    if len(tried) >= 4:
        lines.append(f"Rank correlation (Spearman) of estimated and measured: {agreement(trace, tried):.2f}.")
    return lines


def save(path: Path, trace: Trace, tried: Sequence[Tried]) -> None:
    """Estimated and measured as JSON beside the tried runs."""
    rows = [
        {
            "remedy": one.estimate.key, "typed": one.estimate.change.typed, "trl": one.estimate.change.trl,
            "estimated_chosen": one.estimate.chosen, "estimated_rejected": one.estimate.rejected,
            "error": one.estimate.error, "told": one.estimate.told, "chosen": one.chosen, "rejected": one.rejected,
        }
        for one in tried
    ]  # fmt: skip
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"run": str(trace.path), "tried": rows}, indent=1), encoding="utf-8")
