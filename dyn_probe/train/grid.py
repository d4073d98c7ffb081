"""Methods × settings × seeds on the same data: all cells of a seed start from the same warmed-up policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from dyn_probe.errors import BadInput
from dyn_probe.objectives import parse_shaping
from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.train.grids.grid_cells import Cell, cell_config, parts, recorded, settings_of
from dyn_probe.train.grids.paired_tests import paired_lines, paired_tests, standard_error
from dyn_probe.train.loop import record
from dyn_probe.train.objective import Method
from dyn_probe.train.options.config import OPTIONS, RunConfig
from dyn_probe.train.options.config_file import make_config, read_yaml
from dyn_probe.train.run import WarmStart

METHODS = (
    "dpo", "ipo", "simpo", "kto", "cal_dpo", "dpop", "dpo_shift", "dpo+gate-seq", "dpo+adadpo",
    "dpo+pairwise-normalised",
)  # fmt: skip
"""The methods compared by default: OBJECTIVE, or OBJECTIVE+SHAPING, each with its default options."""
ACCURACIES = (
    "Log-ratio acc.: share of pairs whose log-ratio of chosen is above that of rejected, the same measure for every "
    "method (against the reference, or the start of training). Own acc.: by the method's own score."
)
MEASURED = ("chosen", "rejected", "margin", "log_ratio_accuracy", "accuracy")
SPACE = {"Δchosen": 15, "Δrejected": 15, "Δmargin": 15, "log-ratio acc.": 14, "own acc.": 10}
"""Head of a column of the table → its width."""
OF_A_METHOD = ("objective", "shaping", "hyper", "beta")
"""Fields that each method of a grid sets itself."""
OF_A_RUN = ("out", "resume")
"""Fields that the grid sets for each run."""


@dataclass(frozen=True)
class Outcome:
    """What a run did to the held-out pairs: last minus first (nats per sequence, means over the pairs), and accuracies
    at the end.

    Args:
        accuracy: share of pairs that the method orders right by its own score.
        log_ratio_accuracy: share whose log-ratio of chosen is above that of rejected, the same measure for every
            method: against the reference; for a method without one, against the start of training.
        score: the method's own score, as a formula.
        setting: what was varied beside the method, KEY=VALUE,…; empty where nothing was.
    """

    method: str
    seed: int
    chosen: float
    rejected: float
    accuracy: float
    log_ratio_accuracy: float = math.nan
    score: str = ""
    setting: str = ""

    @property
    def margin(self) -> float:
        """Change of chosen minus change of rejected."""
        return self.chosen - self.rejected


def base_config(file: Path | None, given: Mapping[str, Any]) -> RunConfig:
    """The options that all runs of a grid share: a YAML file, with ``given`` over it.

    Raises:
        BadInput: the file cannot be read, or holds options that are not the same for all runs.
    """
    values = read_yaml(file) if file is not None else {}
    refuse_own(values, f"{file}: ")
    return make_config(None, values | dict(given))


def refuse_own(fields: Iterable[str], place: str = "") -> None:
    """BadInput if a grid's common options include what each method, or the grid itself, sets."""
    fields = tuple(fields)
    of_method, of_run = ([OPTIONS[n].name for n in own if n in fields] for own in (OF_A_METHOD, OF_A_RUN))
    wrong = []
    if of_method:
        what = f"{', '.join(of_method)}: set separately by every method of a grid"
        wrong.append(f"{what}; write --methods OBJECTIVE:KEY=VALUE+SHAPING, e.g. --methods dpo:beta=0.05")
    if of_run:
        wrong.append(f"{', '.join(of_run)}: the grid names the runs' folders itself; use its own --out")
    if wrong:
        raise BadInput(place + "; ".join(wrong))


def configurations(
    base: RunConfig, out: Path, methods: Sequence[str] = METHODS, seeds: int = 1, vary: Sequence[str] = ()
) -> dict[Cell, RunConfig]:
    """Cell → its run; everything but what the method and the setting say, and the seed, is as in ``base``.

    Args:
        vary: ``KEY=VALUE,VALUE,…`` of hyper-parameters or options of the training (``OF_TRAINING``): every method is
            trained in every combination.

    Raises:
        BadInput: a method is unknown, does not compose, or is named twice; nothing is held out; or ``base`` sets
            options of a method.
    """
    plain = RunConfig()
    refuse_own(name for name in OF_A_METHOD if getattr(base, name) != getattr(plain, name))
    if len(set(methods)) < len(methods):
        raise BadInput(f"each method may be named once; got {', '.join(methods)}")
    if not base.eval_fraction:
        raise BadInput("a grid compares its methods on held-out pairs; write an --eval-fraction above 0")
    found = {}
    settings = settings_of(vary)
    for seed in range(base.seed, base.seed + seeds):
        for method in methods:
            for setting in settings:
                cell = Cell(method, seed, ",".join(f"{key}={value}" for key, value in setting.items()))
                found[cell] = cell_config(base, out, cell, setting)
                Method.of(found[cell])
    return found


def train_grid(
    runs: Mapping[Cell, RunConfig], say: Callable[[str], None] = print, progress: bool = True, resume: bool = False
) -> list[Path]:
    """Train the runs one after the other; those of one seed share their warm-up.

    Args:
        resume: leave runs alone that were recorded to their end, and train the others from their start.

    Returns:
        Folders of the traces, in the order of ``runs``.

    Raises:
        BadInput: with ``resume``, a run was recorded with other options.
    """
    warm: dict[int, WarmStart] = {}
    done = {cell for cell, config in runs.items() if resume and recorded(config)}
    for number, (cell, config) in enumerate(runs.items(), start=1):
        before = ", recorded before" if cell in done else ""
        say(f"{number} of {len(runs)}: {cell.name}, seed {cell.seed}{before}")
        if cell not in done:
            fresh = replace(config, force=True) if resume else config
            record(fresh, progress=progress, warm=warm.setdefault(cell.seed, WarmStart()))
    return [config.folder for config in runs.values()]


def outcome(trace: Trace, method: str, seed: int, setting: str = "") -> Outcome:
    """What the run did to its held-out pairs."""
    first, last = trace.steps.sort_values("step").iloc[0], trace.about.held_out
    ends = (last.eval_logp_chosen, last.eval_logp_rejected, last.eval_accuracy) if last else ()
    known = [value for value in ends if value is not None]
    if last is None or len(known) < 3:
        raise BadInput(f"the run.json of {trace.path} does not record what happened to the held-out pairs")
    chosen, rejected, accuracy = known
    common, score = last.eval_log_ratio_accuracy, trace.about.objective.score
    return Outcome(
        method,
        seed,
        chosen - first["eval_logp_chosen"],
        rejected - first["eval_logp_rejected"],
        accuracy,
        math.nan if common is None else common,
        (score.formula or "") if score else "",
        setting,
    )


def outcomes(runs: Mapping[Cell, RunConfig]) -> list[Outcome]:
    """Every run's outcome, from the traces."""
    return [outcome(load_trace(config.folder), *key) for key, config in runs.items()]


def outcome_lines(found: Sequence[Outcome]) -> list[str]:
    """A table of means over seeds, tests of every method against the first, and what it shows of shapings that meet
    both conditions."""
    rows = mean_outcomes(found)
    title = "held-out pairs, end − start"
    width = max(len(name) for name in (title, *(row.name for row in rows)))
    heads = ("Δchosen", "Δrejected", "Δmargin", "log-ratio acc.", "own acc.")
    lines = [f"{title:{width}}  " + "  ".join(f"{head:>{SPACE[head]}}" for head in heads) + "  n  own score"]
    for row in rows:
        one, number = row.mean, len(row.runs)
        changes = (f"{getattr(one, name):+.2f}{row.said(name)}" for name in MEASURED[:3])
        shares = (f"{getattr(one, name):.0%}{row.said(name)}" for name in MEASURED[3:])
        cells = (*changes, *shares)
        told = "  ".join(f"{cell:>{SPACE[head]}}" for cell, head in zip(cells, heads, strict=True))
        lines.append(f"{row.name:{width}}  {told}  {number}  {one.score}")
    return [*lines, ACCURACIES, *paired_lines(paired_tests(found)), *remedy_lines(method_means(found))]


def outcome_data(found: Sequence[Outcome]) -> dict[str, Any]:
    """The same as plain data for the report: ``rows`` of numbers, and the sentences in ``says``."""
    rows = [
        {"method": row.name, "seeds": len({one.seed for one in row.runs}), "runs": len(row.runs),
         **{measure: getattr(row.mean, measure) for measure in MEASURED}, "score": row.mean.score,
         **{f"{measure}_error": row.error(measure) for measure in MEASURED}}
        for row in mean_outcomes(found)
    ]  # fmt: skip
    tests = paired_tests(found)
    says = [*paired_lines(tests), *remedy_lines(method_means(found))]
    return {"rows": rows, "says": says, "tests": [asdict(one) for one in tests]}


@dataclass(frozen=True)
class MeanOutcome:
    """The mean over some runs of a method, and its standard error over them."""

    name: str
    mean: Outcome
    runs: Sequence[Outcome]

    def error(self, measure: str) -> float:
        """Standard error of the mean over the runs; NaN for a single one."""
        return standard_error([getattr(one, measure) for one in self.runs])

    def said(self, measure: str) -> str:
        """`` ± 0.12`` in the unit of the measure; nothing for a single run."""
        error = self.error(measure)
        share = measure.endswith("accuracy")
        return "" if math.isnan(error) else f" ± {error:.0%}" if share else f" ± {error:.2f}"


def mean_outcomes(found: Sequence[Outcome]) -> list[MeanOutcome]:
    """Every method in every setting over its seeds; where settings vary, also over all of them. In the order of the
    methods."""
    rows = []
    for method in dict.fromkeys(one.method for one in found):
        own = [one for one in found if one.method == method]
        settings = list(dict.fromkeys(one.setting for one in own))
        groups = [
            (Cell(method, 0, setting).name, [one for one in own if one.setting == setting]) for setting in settings
        ]
        whole = [(f"{method} (all settings)", own)] if len(settings) > 1 else []
        rows += [MeanOutcome(name, mean_outcome(runs), runs) for name, runs in [*groups, *whole]]
    return rows


def method_means(found: Sequence[Outcome]) -> dict[str, Outcome]:
    """Method → its mean over all settings and seeds, in the order of the methods."""
    names = dict.fromkeys(one.method for one in found)
    return {name: mean_outcome([one for one in found if one.method == name]) for name in names}


def mean_outcome(found: Sequence[Outcome]) -> Outcome:
    """The mean over some runs of one method."""
    names = ("chosen", "rejected", "accuracy", "log_ratio_accuracy")
    chosen, rejected, own, common = (fmean(getattr(one, name) for one in found) for name in names)
    return Outcome(found[0].method, found[0].seed, chosen, rejected, own, common, found[0].score)


def remedy_lines(means: Mapping[str, Outcome]) -> list[str]:
    """Whether chosen rises under a shaping that meets both conditions where it falls under the same method without it:
    a line for every method that was trained both ways."""
    lines = []
    for name in means:
        objective, *shapings = parts(name)
        for one in shapings:
            base = "+".join([objective, *(other for other in shapings if other != one)])
            chosen = parse_shaping(one)
            if chosen.shaping.meets_conditions(chosen.options) and base in means:
                lines.append(remedy_line(base, one, means[base], means[name]))
    return lines


def remedy_line(name: str, remedy: str, plain: Outcome, shaped: Outcome) -> str:
    """What updates under the shaping did to chosen, compared with the same method without it."""
    numbers = f"{shaped.chosen:+.2f} against {plain.chosen:+.2f} nats/sequence"
    if shaped.chosen > 0 > plain.chosen:
        return f"As predicted, chosen rises under {remedy} updates where it falls under {name} without them: {numbers}."
    if plain.chosen >= 0:
        return (
            f"Chosen does not fall under {name} in the first place, so there is nothing for {remedy} updates to fix: "
            f"{numbers}."
        )
    return (
        f"Chosen does not rise under {remedy} updates of {name} either, although each pair alone would raise it to "
        f"first order: {numbers}."
    )
