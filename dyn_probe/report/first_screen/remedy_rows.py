"""The remedies that a fix table estimates: one function and one row each.

A remedy is `def name(run: Recorded) -> Change | None`: how the run would be trained and what to type; None where
it does not apply to the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dyn_probe.objectives import OBJECTIVES, SHAPINGS, resolve_hyper, shapings_of
from dyn_probe.objectives.options import parse
from dyn_probe.report.replay.shape_forms import FITS
from dyn_probe.report.replay.walk import Method


@dataclass(frozen=True)
class Recorded:
    """What a run's remedies start from.

    Args:
        objective: its name as `dyn-probe methods` lists it; None where it is none of these.
        method: how it was trained, for the walk; its objective is None where its pulls are not known in closed form.
        lr: its largest learning rate; steps: its optimizer steps.
        weight: likelihood weight that levels chosen (NaN where none is named); present: the one that it had.
        trl: trainer of TRL that it is, or would be, trained by: DPO, CPO or ORPO.
        terms: TRL's loss types of its own, without the likelihood → their weights; empty where TRL has none.
        typed: what its options said of the method: `objective`, `hyper`, `beta` and `shaping`, as in its run.json.
    """

    objective: str | None
    method: Method
    lr: float
    steps: int
    weight: float
    present: float = 0.0
    trl: str = "DPO"
    terms: Mapping[str, float] = field(default_factory=dict)
    typed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """A remedy of one run: the method to walk with, `record` options that are added or take the place of the run's own,
    TRL's setting (empty: TRL has none), the options as fields of a run's configuration, and the trainer of TRL that it
    needs (empty: the run's)."""

    method: Method
    typed: str
    trl: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    trainer: str = ""


TRL_LOSSES: Mapping[str, str] = {"dpo": "sigmoid", "ipo": "ipo", "sppo": "sppo_hard"}
"""Objective → the loss type of TRL's `DPOTrainer` that is the same."""
BETA_FACTOR = 5.0
"""A small increase of beta hardly helps with an optimizer that divides the pulls' common size out."""
IMITATION = 0.2
"""Factor on the likelihood term of an objective that has one, where rejected rises."""


def _text(value: float) -> str:
    return f"{value:.2g}" if value < 1000 else f"{value:.0f}"


def _hyper(run: Recorded, name: str, value: float) -> str:
    """What to type for a hyper-parameter: where the run's own options have it, in its place."""
    objective, inline = parse(str(run.typed.get("objective") or "dpo"))
    if name in inline:
        given = ",".join(f"{key}={f'{value:g}' if key == name else own}" for key, own in inline.items())
        return f"--objective {objective}:{given}"
    if name == "beta" and run.typed.get("beta") is not None:
        return f"--beta {value:g}"
    return f"--set {name}={value:g}"


def _with_likelihood(run: Recorded, weight: float) -> str:
    """TRL's setting of a likelihood term of this weight beside the run's own loss; 0: without one."""
    if run.trl == "CPO":
        return f"cpo_alpha={weight:g}"
    if run.trl != "DPO" or not run.terms:
        return ""
    types, weights = [*run.terms, "sft"], [*run.terms.values(), weight]
    if not weight and len(run.terms) == 1:
        return f'loss_type="{types[0]}"'
    named = ", ".join(f'"{one}"' for one in types)
    return f"loss_type=[{named}], loss_weights=[{', '.join(str(float(one)) for one in weights)}]"


def likelihood(run: Recorded) -> Change | None:
    """A likelihood term on chosen, with the weight that levels what other pairs do to it."""
    if not run.weight > 0:
        return None
    weight = float(_text(run.weight))
    added = weight if run.method.objective is not None else weight - run.present  # recorded pulls have the present one
    hyper = {"nll_mean": "batch", **run.method.hyper, "nll": added}
    there = replace(run.method, hyper=hyper)
    return Change(there, _hyper(run, "nll", weight), _with_likelihood(run, weight), {"hyper": {"nll": weight}})


def beta(run: Recorded) -> Change | None:
    """A larger β."""
    now = run.method.hyper.get("beta")
    if run.method.objective is None or not now:
        return None
    value = float(_text(BETA_FACTOR * now))
    method = replace(run.method, hyper={**run.method.hyper, "beta": value})
    return Change(method, _hyper(run, "beta", value), f"beta={value:g}", {"hyper": {"beta": value}, "beta": None})


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


def other(name: str) -> Callable[[Recorded], Change | None]:
    """Another objective, with its own defaults: what the run's options say of its own is to be left out."""

    def remedy(run: Recorded) -> Change | None:
        if run.objective == name:
            return None
        hyper, loss = resolve_hyper(name), TRL_LOSSES.get(name)
        method = replace(run.method, objective=name, hyper=hyper, shapings={})
        fields: dict[str, Any] = {"objective": name, "hyper": {}, "beta": None, "shaping": ()}
        options = {"beta": "--beta", "hyper": "--set", "shaping": "--shaping"}
        own = [option for key, option in options.items() if run.typed.get(key) not in (None, {}, [], ())]
        left = f" (leave out {', '.join(own)})" if own else ""
        trl = f'loss_type="{loss}", beta={hyper["beta"]:g}' if loss else ""
        return Change(method, f"--objective {name}{left}", trl, fields, "DPO")

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
    return Change(method, _hyper(run, "nll", 0.0), _with_likelihood(run, 0.0), {"hyper": {"nll": 0.0}})


def less_imitation(run: Recorded) -> Change | None:
    """A smaller weight of the likelihood term that the objective has itself."""
    row = OBJECTIVES.get(run.objective or "")
    if row is None or not row.likelihood or run.method.objective is None or "lambda" not in run.method.hyper:
        return None
    value = float(_text(IMITATION * run.method.hyper["lambda"]))
    method = replace(run.method, hyper={**run.method.hyper, "lambda": value})
    return Change(method, _hyper(run, "lambda", value), "", {"hyper": {"lambda": value}})


@dataclass(frozen=True)
class Remedy:
    """One row of the table: what it is for the reader, how it changes a run, and whether it acts through the balance of
    chosen and rejected pulls (where these nearly cancel, nothing can be told of it); `advice`: the key of the verdicts'
    advice that it follows (KNOBS)."""

    words: str
    change: Callable[[Recorded], Change | None]
    by_balance: bool = True
    advice: str = ""


REMEDIES: dict[str, Remedy] = {
    "likelihood": Remedy("Likelihood term on chosen", likelihood, advice="sft"),
    "beta": Remedy("Larger β", beta, advice="beta"),
    "rate": Remedy("Half the learning rate", rate, by_balance=False, advice="lr"),
    "early": Remedy("Stop after half the steps", early, by_balance=False, advice="early"),
    "dpop": Remedy("DPOP", other("dpop"), advice="chosen"),
    "dpo_shift": Remedy("DPO-Shift", other("dpo_shift"), advice="rejected"),
    "cal_dpo": Remedy("Cal-DPO", other("cal_dpo"), advice="chosen"),
    "ipo": Remedy("IPO", other("ipo")),
    "dpo": Remedy("DPO", other("dpo")),
    "gate": Remedy("Gate on rejected", shaping("gate-seq"), advice="rejected"),
    "adadpo": Remedy("AdaDPO", shaping("adadpo"), advice="chosen"),
    "normalise": Remedy("Pairwise-normalised updates", shaping("pairwise-normalised"), advice="normalise"),
    "no_likelihood": Remedy("No likelihood term", without_likelihood),
    "imitation": Remedy("Less imitation", less_imitation),
}
"""Key → remedy. The table of a run shows those that apply and help, best first (``fix_table``)."""
