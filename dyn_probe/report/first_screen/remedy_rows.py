"""The remedies that a fix table estimates: one function and one row each.

A remedy is `def name(run: Recorded) -> Change | None`: how the run would be trained and what to type; None where
it does not apply to the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dyn_probe.objectives import OBJECTIVES, SHAPINGS, resolve_hyper, shapings_of
from dyn_probe.report.replay.shape_forms import FITS
from dyn_probe.report.replay.walk import Method


@dataclass(frozen=True)
class Recorded:
    """What a run's remedies start from.

    Args:
        objective: its name as `dyn-probe methods` lists it; None where it is none of these.
        method: how it was trained, for the walk; its objective is None where its pulls are not known in closed form.
        lr: its largest learning rate; steps: its optimizer steps.
        weight: likelihood weight that levels chosen (NaN where none is named).
    """

    objective: str | None
    method: Method
    lr: float
    steps: int
    weight: float


@dataclass(frozen=True)
class Change:
    """A remedy of one run: the method to walk with, `record` options that are added, TRL's setting (empty: TRL has
    none), and the options as fields of a run's configuration."""

    method: Method
    typed: str
    trl: str
    fields: Mapping[str, Any] = field(default_factory=dict)


BETA_FACTOR = 5.0
"""A small increase of beta hardly helps with an optimizer that divides the pulls' common size out."""
IMITATION = 0.2
"""Factor on the likelihood term of an objective that has one, where rejected rises."""


def _text(value: float) -> str:
    return f"{value:.2g}" if value < 1000 else f"{value:.0f}"


def likelihood(run: Recorded) -> Change | None:
    """A likelihood term on chosen, with the weight that levels what other pairs do to it."""
    if not run.weight > 0:
        return None
    weight = float(_text(run.weight))
    hyper = {"nll_mean": "batch", **run.method.hyper, "nll": weight}
    return Change(
        replace(run.method, hyper=hyper),
        f"--set nll={weight:g}",
        f'loss_type=["sigmoid", "sft"], loss_weights=[1.0, {weight:g}]' if run.objective == "dpo" else "",
        {"hyper": {"nll": weight}},
    )


def beta(run: Recorded) -> Change | None:
    """A larger β."""
    now = run.method.hyper.get("beta")
    if run.method.objective is None or not now:
        return None
    value = float(_text(BETA_FACTOR * now))
    method = replace(run.method, hyper={**run.method.hyper, "beta": value})
    return Change(method, f"--set beta={value:g}", f"beta={value:g}", {"hyper": {"beta": value}, "beta": None})


def rate(run: Recorded) -> Change | None:
    """Half the learning rate."""
    if not run.lr > 0:
        return None
    value = float(f"{run.lr / 2:.2g}")
    return Change(
        replace(run.method, rate=value / run.lr), f"--lr {value:g}", f"learning_rate={value:g}", {"lr": value}
    )


def early(run: Recorded) -> Change | None:
    """Half the steps."""
    steps = run.steps // 2
    if steps < 1:
        return None
    method = replace(run.method, length=steps / run.steps)
    return Change(method, f"--steps {steps}", f"max_steps={steps}", {"steps": steps})


def other(name: str, trl: str = "") -> Callable[[Recorded], Change | None]:
    """Another objective, with its own defaults."""

    def remedy(run: Recorded) -> Change | None:
        if run.objective == name:
            return None
        method = replace(run.method, objective=name, hyper=resolve_hyper(name), shapings={})
        fields: dict[str, Any] = {"objective": name, "hyper": {}, "beta": None, "shaping": ()}
        return Change(method, f"--objective {name}", trl, fields)

    return remedy


def shaping(name: str) -> Callable[[Recorded], Change | None]:
    """A shaping beside those of the run."""

    def remedy(run: Recorded) -> Change | None:
        row, objective = SHAPINGS[name], OBJECTIVES.get(run.objective or "")
        taken = {column for one in run.method.shapings for column in SHAPINGS[one].columns}
        fits = objective is not None and name in shapings_of(objective) and not taken & set(row.columns)
        if not fits or run.method.objective is None or not FITS[name](run.method.objective, row.defaults):
            return None
        shapings = {**run.method.shapings, name: row.defaults}
        return Change(replace(run.method, shapings=shapings), f"--shaping {name}", "", {"shaping": (name,)})

    return remedy


def without_likelihood(run: Recorded) -> Change | None:
    """The likelihood term left off."""
    if not run.method.hyper.get("nll") or run.method.objective is None:
        return None
    method = replace(run.method, hyper={**run.method.hyper, "nll": 0.0})
    return Change(method, "--set nll=0", 'loss_type="sigmoid"', {"hyper": {"nll": 0.0}})


def less_imitation(run: Recorded) -> Change | None:
    """A smaller weight of the likelihood term that the objective has itself."""
    row = OBJECTIVES.get(run.objective or "")
    if row is None or not row.likelihood or run.method.objective is None or "lambda" not in run.method.hyper:
        return None
    value = float(_text(IMITATION * run.method.hyper["lambda"]))
    method = replace(run.method, hyper={**run.method.hyper, "lambda": value})
    return Change(method, f"--set lambda={value:g}", "", {"hyper": {"lambda": value}})


@dataclass(frozen=True)
class Remedy:
    """One row of the table: what it is for the reader, how it changes a run, and whether it acts through the balance of
    chosen and rejected pulls (where these nearly cancel, nothing can be told of it)."""

    words: str
    change: Callable[[Recorded], Change | None]
    by_balance: bool = True


REMEDIES: dict[str, Remedy] = {
    "likelihood": Remedy("Likelihood term on chosen", likelihood),
    "beta": Remedy("Larger β", beta),
    "rate": Remedy("Half the learning rate", rate, by_balance=False),
    "early": Remedy("Stop after half the steps", early, by_balance=False),
    "dpop": Remedy("DPOP", other("dpop")),
    "dpo_shift": Remedy("DPO-Shift", other("dpo_shift")),
    "cal_dpo": Remedy("Cal-DPO", other("cal_dpo")),
    "ipo": Remedy("IPO", other("ipo", 'loss_type="ipo"')),
    "dpo": Remedy("DPO", other("dpo", 'loss_type="sigmoid"')),
    "gate": Remedy("Gate on rejected", shaping("gate-seq")),
    "adadpo": Remedy("AdaDPO", shaping("adadpo")),
    "normalise": Remedy("Pairwise-normalised updates", shaping("pairwise-normalised")),
    "no_likelihood": Remedy("No likelihood term", without_likelihood),
    "imitation": Remedy("Less imitation", less_imitation),
}
"""Key → remedy. The table of a run shows those that apply and help, best first (``fix_table``)."""
