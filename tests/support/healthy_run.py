"""A healthy synthetic run with everything recorded, and one change per statement of the report: past its threshold,
or just short of it. Every change is of what that statement reads, and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from moved_runs import moved_tables
from report_frames import Options
from report_runs import manifest, write_tables

from dyn_probe.trace.reader import Trace, load_trace

OPTIONS = Options(regime="case1", steps=40, batch=8, pairs=32, mass=True)
SIDES = ("chosen", "rejected")


@dataclass
class Run:
    """Tables, `run.json` and the way a run ended, before they are written; `folder` changes the files afterwards."""

    tables: dict[str, pd.DataFrame]
    about: dict[str, Any]
    status: str = "closed"
    folder: Callable[[Path], None] = lambda path: None
    later: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name in ("pairs", "steps", "layers", "mass", "pushes", "final"):
            return self.tables[name]
        raise AttributeError(name)

    def ends(self, chosen: object, rejected: object) -> None:
        """Every pair's change from before training to the end, nats/token [pairs] or one number."""
        rows = self.pairs.drop_duplicates("pair_id").set_index("pair_id").loc[self.final.pair_id]
        for side, by in zip(SIDES, (chosen, rejected), strict=True):
            end = rows[f"ref_logp_{side}"] + np.asarray(by) * rows[f"len_{side}"]
            self.final[f"logp_{side}"] = end.to_numpy()

    def log_ratios(self, chosen: object, start: float = 0.0) -> None:
        """The rows' log-ratio of chosen to the reference, nats/token [rows]; `start` for the first step. Rejected moves
        with it, so that the margin stays."""
        values = np.where(self.pairs.step == 0, start, np.asarray(chosen))
        by = self.pairs.ref_logp_chosen + values * self.pairs.len_chosen - self.pairs.logp_chosen
        self.pairs[["logp_chosen", "logp_rejected"]] += by.to_numpy()[:, None]

    def signs(self, chosen: object, rejected: object) -> None:
        """Signs of every measured and predicted change of the rows; their sizes stay."""
        for side, sign in zip(SIDES, (chosen, rejected), strict=True):
            for kind in ("realised", "update", "batch", "predicted"):
                name = f"{kind}_delta_{side}"
                self.pairs[name] = self.pairs[name].abs() * np.asarray(sign)

    def written(self, path: Path) -> Trace:
        """The run as a trace."""
        write_tables(path, self.tables, self.about, self.status)
        if self.later:
            file = path / "run.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | self.later))
        self.folder(path)
        return load_trace(path)


def healthy() -> Run:
    """Chosen rises, rejected falls, on the pairs that were trained on and on others; nothing else stands out."""
    tables = moved_tables(0.2, -0.5, OPTIONS)
    pairs, steps, mass = tables["pairs"], tables["steps"], tables["mass"]
    draw, rows = np.random.default_rng(7), len(pairs)
    run = Run(tables, manifest(OPTIONS) | {"config": {**manifest(OPTIONS)["config"], "dtype": "float32"}})  # type: ignore[dict-item]
    along = pairs.step / OPTIONS.steps
    for side, nats in (("chosen", 6.0), ("rejected", -9.0)):
        pairs[f"logp_{side}"] = pairs[f"ref_logp_{side}"] + along * (nats + draw.normal(0, 0.3, rows))
    sizes = np.abs(draw.normal(0.05, 0.01, rows))
    for side, sign in (("chosen", 1.0), ("rejected", -1.0)):
        for kind, factor in (("realised", 1.0), ("update", 1.01), ("batch", 0.9), ("predicted", 1.1)):
            pairs[f"{kind}_delta_{side}"] = sign * sizes * factor * draw.lognormal(0, 0.02, rows)
    pairs["edit_distance"], pairs["shared_prefix"] = draw.uniform(0.4, 0.9, rows), 1
    pairs["loss"] = 0.55 - 0.1 * along
    pairs["pull_chosen"] = pairs["pull_rejected"] = 0.05 - 0.01 * along
    steps["grad_norm"] = steps["grad_norm_clipped"] = 0.5 * draw.lognormal(0, 0.05, len(steps))
    steps["law1_error"] = steps["law7_error"] = 1e-7
    steps["unmoved_share"] = 0.1
    steps.loc[steps.step == 0, ["eval_logp_chosen", "eval_logp_rejected"]] = -40.0
    steps.loc[steps.step == steps.step.max(), ["eval_logp_chosen", "eval_logp_rejected"]] = (-38.0, -50.0)
    mass["entropy"] = 1.5
    rises = mass.kind == "chosen"
    mass["argmax_logp"] = -20.0
    mass.loc[rises, "logp_token"] = -2.0 + 0.2 * mass.step[rises] / OPTIONS.steps
    mass["logp"] = 20 * mass.logp_token
    tables["layers"]["grad_inner"] *= 0.2
    tables["pushes"]["all_rejected"] = outweighing(tables["pushes"], 0.0)
    return run


def outweighing(pushes: pd.DataFrame, by: float) -> pd.Series:
    """Rejected pushes of all pairs that outweigh the chosen ones of other pairs by such a share of their sum over the
    chosen rows, within a standard error of about 0.01."""
    other = pushes.all_chosen - pushes.own_chosen
    draw = pd.Series(np.random.default_rng(5).normal(0, 0.18, len(pushes)), index=pushes.index)
    chosen = pushes.side == "chosen"
    draw -= (draw * other)[chosen].sum() / other[chosen].sum()
    return pushes.own_rejected - other * (1 + draw + by)


def spread_out(count: int, part: float) -> np.ndarray:
    """That part of the rows, everywhere alike [count]."""
    return (np.arange(count) * 0.6180339887) % 1 < part


@dataclass(frozen=True)
class Trouble:
    """One statement, what it rises to, and the change that makes it: past the threshold, or just short of it (None
    where there is no threshold, only whether)."""

    statement: str
    level: str
    change: Callable[[Run, bool], object]
    threshold: bool = True


Change = Callable[[Run, bool], object]


def entering(table: dict[str, Trouble]) -> Callable[..., Callable[[Change], Change]]:
    """What enters a change into a table, under its own name."""

    def trouble(statement: str, level: str, threshold: bool = True) -> Callable[[Change], Change]:
        def enter(change: Change) -> Change:
            table[change.__name__.replace("_", " ")] = Trouble(statement, level, change, threshold)
            return change

        return enter

    return trouble


def just(limit: float, past: bool, above: bool = True, by: float = 0.02) -> float:
    """A number two per cent past the limit, or two per cent short of it."""
    return limit * (1 + by if past == above else 1 - by)
