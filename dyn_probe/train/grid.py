"""Methods × seeds on the same data: every method of a seed starts from the same warmed-up policy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from dyn_probe.errors import BadInput
from dyn_probe.objectives import parse_shaping
from dyn_probe.trace.reader import Trace, load_trace
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
    """

    method: str
    seed: int
    chosen: float
    rejected: float
    accuracy: float
    log_ratio_accuracy: float = math.nan
    score: str = ""

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
    base: RunConfig, out: Path, methods: Sequence[str] = METHODS, seeds: int = 1
) -> dict[tuple[str, int], RunConfig]:
    """``(method, seed)`` → its run; everything but method and seed is as in ``base``.

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
    for seed in range(base.seed, base.seed + seeds):
        for method in methods:
            objective, *shapings = parts(method)
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", method)
            config = replace(
                base, out=str(out / f"{name}-seed{seed}"), objective=objective, shaping=tuple(shapings), seed=seed
            )
            Method.of(config)
            found[method, seed] = config
    return found


def train_grid(
    runs: Mapping[tuple[str, int], RunConfig], say: Callable[[str], None] = print, progress: bool = True
) -> list[Path]:
    """Train the runs one after the other; those of one seed share their warm-up.

    Returns:
        Folders of the traces, in the order of ``runs``.
    """
    warm: dict[int, WarmStart] = {}
    folders = []
    for number, ((method, seed), config) in enumerate(runs.items(), start=1):
        say(f"{number} of {len(runs)}: {method}, seed {seed}")
        folders.append(record(config, progress=progress, warm=warm.setdefault(seed, WarmStart())))
    return folders


def outcome(trace: Trace, method: str, seed: int) -> Outcome:
    """What the run did to its held-out pairs."""
    first, last = trace.steps.sort_values("step").iloc[0], trace.about.held_out
    ends = (last.eval_logp_chosen, last.eval_logp_rejected, last.eval_accuracy) if last else ()
    known = [value for value in ends if value is not None]
    if last is None or len(known) < 3:
        raise BadInput(f"the run.json of {trace.path} does not say what became of the held-out pairs")
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
    )


def outcomes(runs: Mapping[tuple[str, int], RunConfig]) -> list[Outcome]:
    """Every run's outcome, from the traces."""
    return [outcome(load_trace(config.folder), *key) for key, config in runs.items()]


def outcome_lines(found: Sequence[Outcome]) -> list[str]:
    """A table of means over seeds, and what it shows of shapings that meet both conditions."""
    means = mean_outcomes(found)
    title = "held-out pairs, end − start"
    width = max(len(name) for name in (title, *means))
    heads = ("Δchosen", "Δrejected", "Δmargin", "log-ratio acc.", "own acc.")
    lines = [f"{title:{width}}  " + "  ".join(f"{head:>9}" for head in heads) + "  own score"]
    lines += [
        f"{name:{width}}  {one.chosen:+9.2f}  {one.rejected:+9.2f}  {one.margin:+9.2f}  "
        f"{one.log_ratio_accuracy:14.0%}  {one.accuracy:9.0%}  {one.score}"
        for name, one in means.items()
    ]
    return [*lines, ACCURACIES, *remedy_lines(means)]


def outcome_data(found: Sequence[Outcome]) -> dict[str, Any]:
    """The same as plain data for the report: ``rows`` of numbers, and the sentences in ``says``."""
    means = mean_outcomes(found)
    rows = [
        {"method": name, "seeds": sum(other.method == name for other in found), "chosen": one.chosen,
         "rejected": one.rejected, "margin": one.margin, "log_ratio_accuracy": one.log_ratio_accuracy,
         "accuracy": one.accuracy, "score": one.score}
        for name, one in means.items()
    ]  # fmt: skip
    return {"rows": rows, "says": remedy_lines(means)}


def mean_outcomes(found: Sequence[Outcome]) -> dict[str, Outcome]:
    """Method → its mean over the seeds, in the order of the methods."""
    names = dict.fromkeys(one.method for one in found)
    return {name: mean_outcome([one for one in found if one.method == name]) for name in names}


def mean_outcome(found: Sequence[Outcome]) -> Outcome:
    """The mean over the seeds of one method."""
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


def parts(method: str) -> list[str]:
    """Objective and shapings of ``OBJECTIVE+SHAPING+…``, each with its options."""
    return re.split(r"\+(?=[a-z])", method)


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
