"""The fix table: remedies in order, each with its estimated effect, its error bar, what it costs, and what to type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dyn_probe.objectives import OBJECTIVES, SHAPINGS, resolve_hyper
from dyn_probe.report.changes import Change as Moved
from dyn_probe.report.changes import run_change
from dyn_probe.report.first_screen.remedy_rows import REMEDIES, TRL_LOSSES, Change, Recorded
from dyn_probe.report.first_screen.trouble import trouble
from dyn_probe.report.frames import Floats, finite, median, numbers, once
from dyn_probe.report.push_parts import balance
from dyn_probe.report.replay.kernels import Kernels, kernels, lacks
from dyn_probe.report.replay.pull_forms import FORMS
from dyn_probe.report.replay.shape_forms import FITS
from dyn_probe.report.replay.walk import ADAPTIVE, Method, Walk, walk
from dyn_probe.report.run_facts import shaping_options
from dyn_probe.report.verdicts.verdict import sig
from dyn_probe.report.verdicts.what_moved import CLOSE, level_weight, likelihood_weight

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace
    from dyn_probe.trace.run_fields import Manifest

TILTED = 10
"""Where pushes cancel, a remedy that changes the balance of pulls by so many times CLOSE decides, and not what was left
of them."""
LEAST_COST = 0.05
"""Share of the run's margin that every remedy is taken to cost at least, so that a small free gain is not put above a
large cheap one."""
ROUGH = 0.2
"""What first order leaves out of a margin, as a share of the run's: the root mean square over the trials of
docs/fix-table.md. Two responses that share most of their words stop falling together sooner than their pushes say."""


@dataclass(frozen=True)
class Estimate:
    """What one remedy would have done over the same run, to first order; changes in nats/token.

    Args:
        key: its row of REMEDIES.
        chosen, rejected: estimated change over the run; `error`: of the trouble's side, one standard error.
        cost: margin that it loses (nats/token; negative: gains), `margin`: that of the run as it was; `margin_error`:
            of the margin that is left, one standard error.
        gain: improvement of the trouble's side.
        told: whether it is larger than its error, and the error no larger than what the run moved; where pushes
            cancel, a remedy that acts by the balance of pulls must also change it by more than TILTED times CLOSE.
    """

    key: str
    words: str
    change: Change
    chosen: float
    rejected: float
    error: float
    cost: float
    margin: float
    gain: float
    told: bool
    margin_error: float = float("nan")

    @property
    def worth(self) -> float:
        """Gain per margin lost, of which LEAST_COST of the run's margin is always counted."""
        return self.gain / max(self.cost, LEAST_COST * abs(self.margin), 1e-9)


def fix_table(trace: Trace) -> list[Estimate]:
    """The remedies that help, best first; empty where nothing is wrong, or where nothing can be estimated (`why_none`).

    The order is that of the gain (of chosen, or less rise of rejected) per margin lost; remedies of which nothing can
    be told come last.
    """
    found = [estimate for estimate in estimates(trace) if estimate.gain > 0]
    return sorted(found, key=lambda one: (not one.told, -one.worth))


def why_none(trace: Trace) -> str:
    """Why a run has no fix table; empty where it has one."""
    if run_change(trace) is None:
        return "Nothing is suggested: how far the log-probabilities moved was not measured."
    side = trouble(trace)
    if not side:
        return "Nothing to change: chosen did not fall and rejected did not rise."
    if trace.about.scan is not None:
        return "Nothing is estimated: these pairs were measured at checkpoints, and no training was recorded."
    if kernels(trace) is None:
        note = trace.about.pushes
        why = (note.reason if note is not None else "") or lacks(trace)
        return f"No remedy was estimated ({why}). What has helped in trials is listed under Why?"
    table, moved = fix_table(trace), run_change(trace)
    if not table or moved is None:
        return "No remedy of the table is estimated to help."
    most = max(abs(median(moved.side(name))) for name in ("chosen", "rejected"))
    least = min(row.error for row in table)
    if least > most:
        return (
            f"No remedy can be told from this run: the estimates' errors (± {sig(least, 2)} at least) are larger than "
            f"what it moved ({sig(most, 2)} nats/token). Record more of its steps (--metric-every 1), or a longer run."
        )
    return ""


@once
def estimates(trace: Trace) -> list[Estimate]:
    """Every remedy that applies to the run, in the order of REMEDIES, those that do harm too."""
    side, moved = trouble(trace), run_change(trace)
    known = kernels(trace) if side and moved is not None and trace.about.scan is None else None
    if known is None or moved is None:
        return []
    run = recorded(trace, known)
    adaptive = any(name in str(trace.about.config.get("optimizer") or "adamw").lower() for name in ADAPTIVE)
    base, close = walk(known, run.method, adaptive), _cancel(trace, side)
    found = []
    for key, row in REMEDIES.items():
        change = row.change(run)
        if change is not None:
            there = walk(known, change.method, adaptive)
            tilted = abs(float(there.balance[0] - base.balance[0])) > TILTED * CLOSE
            found.append(_estimate(key, change, side, moved, base, there, close and row.by_balance and not tilted))
    return found


def _estimate(key: str, change: Change, side: str, moved: Moved, base: Walk, there: Walk, close: bool) -> Estimate:
    """Measured change of the run, and the difference of the two walks on it."""
    was = {name: median(moved.side(name)) for name in ("chosen", "rejected")}
    difference = {name: getattr(there, name) - getattr(base, name) for name in was}
    then = {name: was[name] + float(difference[name][0]) for name in was}
    missed = {name: float(getattr(base, name)[0] - moved.side(name).mean()) for name in was}
    error = float(np.hypot(_spread(difference[side]), missed[side]))
    gain = (then[side] - was[side]) * (1 if side == "chosen" else -1)
    margin = was["chosen"] - was["rejected"]
    off = (_spread(difference["chosen"] - difference["rejected"]), missed["chosen"] - missed["rejected"])
    margin_error = float(np.linalg.norm([*off, ROUGH * margin]))
    told = gain > error and not close and error <= max(map(abs, was.values()))
    cost = margin - (then["chosen"] - then["rejected"])
    words = REMEDIES[key].words
    return Estimate(key, words, change, then["chosen"], then["rejected"], error, cost, margin, gain, told, margin_error)


def _spread(values: Floats) -> float:
    """Standard deviation over the resamples, which stand behind the value itself; 0 where there are none."""
    return float(np.std(values[1:], ddof=1)) if len(values) > 2 else 0.0


def _cancel(trace: Trace, side: str) -> bool:
    """Whether the pushes of other pairs nearly cancel on the trouble's side, so that no estimate stands on them."""
    found = balance(trace, own=False, side=side)
    return found is None or abs(found.value) < CLOSE


def recorded(trace: Trace, known: Kernels) -> Recorded:
    """What the run's remedies start from, as run.json says it."""
    about = trace.about
    name = str(about.objective.name)
    rates: Floats = finite(numbers(trace.steps, "learning_rate"))
    lr = about.config.get("lr")
    most = float(lr) if isinstance(lr, int | float) else float(rates.max(initial=0.0))
    hyper, ours = about.objective.hyper, TRL_LOSSES.get(name)
    trl = trl_trainer(trace)
    terms = dict(zip(hyper.get("loss_type") or (), hyper.get("loss_weights") or (), strict=False))
    terms = {one: weight for one, weight in terms.items() if one != "sft"} or ({ours: 1.0} if ours else {})
    return Recorded(
        name if name in OBJECTIVES else None, method_of(about), most, known.steps, level_weight(trace),
        likelihood_weight(hyper), trl, terms, about.config,
    )  # fmt: skip


def trl_trainer(trace: Trace) -> str:
    """Which of TRL's trainers trained the run, or would: DPO, CPO or ORPO."""
    name = str((trace.manifest.get("trainer") or {}).get("name") or "")
    return "ORPO" if "ORPO" in name else "CPO" if "CPO" in name or "cpo_alpha" in trace.about.objective.hyper else "DPO"


def method_of(about: Manifest) -> Method:
    """How the run was trained, for the walk; without an objective where its pulls have no closed form here."""
    name = str(about.objective.name)
    row, shapings = OBJECTIVES.get(name), shaping_options(about)
    hyper: dict[str, Any] = {}
    if row is not None:
        hyper = resolve_hyper(row, {k: v for k, v in about.objective.hyper.items() if k in row.options})
    options = {one: {**SHAPINGS[one].defaults, **given} for one, given in shapings.items() if one in SHAPINGS}
    closed = name in FORMS and not hyper.get("soft") and all(
        one in FITS and one in options and FITS[one](name, options[one]) for one in shapings
    )  # fmt: skip
    return Method(name, hyper, options) if closed else Method(None, {})
