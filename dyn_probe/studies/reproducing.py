"""A study from its options to its page: which arms it has, training those that are not done, and what is written."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dyn_probe.errors import BadInput
from dyn_probe.studies.arms.arm import GENERATED, Arm, chosen_arms
from dyn_probe.studies.arms.arm_manifest import done
from dyn_probe.studies.arms.arm_pages import write_arms
from dyn_probe.studies.arms.arm_running import begin_study, check_study, not_run_lines, run_arms
from dyn_probe.studies.arms.gate_arms import SIZE, gate_arms
from dyn_probe.studies.arms.objective_arms import DATA, objective_arms
from dyn_probe.studies.arms.pretrained_arms import Pretrained
from dyn_probe.studies.claims import claim_lines
from dyn_probe.studies.presets import ON_PRETRAINED, TRAININGS, USUAL, preset_named, training_named
from dyn_probe.studies.sentiment_page import write_study as write_sentiment
from dyn_probe.studies.sentiment_runs import Study, sentiment_arms
from dyn_probe.studies.squeezing_page import figures, study_lines
from dyn_probe.studies.squeezing_page import write_study as write_squeezing
from dyn_probe.studies.squeezing_runs import squeezing_arms, study_data
from dyn_probe.trace.reader import Trace, load_trace

Writer = Callable[[Sequence[Arm], Sequence[str]], tuple[Path, list[str]]]
"""``(arms that are done, a line for each that is not)`` → the page, and lines for a terminal."""


@dataclass(frozen=True)
class Request:
    """What ``dyn-probe reproduce`` was asked for; None where it was not said."""

    folder: Path
    seeds: int | None = None
    statements: str | None = None
    probe_file: Path | None = None
    preset: str | None = None
    model: str | None = None
    data: str | None = None
    lora_rank: int | None = None
    device: str | None = None

    @property
    def pretrained(self) -> Pretrained | None:
        """The model that the arms start from, if it is not the built-in one."""
        if self.model in (None, "built-in"):
            if self.lora_rank:
                raise BadInput("--lora-rank is for a pretrained model; name one with --model")
            return None
        if self.preset is not None:
            training_named(self.preset, "cpu")  # refused before anything is written
        return Pretrained(str(self.model), self.lora_rank or 0, self.device or "auto", self.preset)

    @property
    def study(self) -> Study:
        """Settings of the built-in model's arms; one seed where a pretrained model is named and no number."""
        if self.preset and self.pretrained is None:
            raise BadInput(f"--preset ({', '.join(TRAININGS)}) is for a pretrained model here; name one with --model")
        usual = Study().seeds if self.pretrained is None else 1
        return Study(seeds=self.seeds or usual, statements=self.statements or "")

    @property
    def options(self) -> list[tuple[str, Any]]:
        """As they were typed, for the commands of single arms."""
        left_out = ("folder", "seeds", "device")
        return [(f"--{k.replace('_', '-')}", v) for k, v in asdict(self).items() if k not in left_out]

    def places(self, study: str) -> str:
        """The options that say where an arm of this study goes on, beside ``options``: " --out F --seeds N …"."""
        out = None if self.folder == Path("runs") / study else self.folder
        given = {"out": out, "seeds": self.seeds, "device": self.device}
        return "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None)

    @property
    def settings(self) -> dict[str, Any]:
        """What a continuation must be given again."""
        return {name: value for name, value in asdict(self).items() if name != "folder" and value is not None}

    def about(self, settings: Any) -> dict[str, Any]:
        """The settings that a page shows: those of the model that was trained."""
        own = self.pretrained
        shown = asdict(settings) if own is None else {"model": own.name} | asdict(own.training)
        return shown | {name: value for name, value in self.settings.items() if name != "device"}


def reproduce(
    study: str, request: Request, arm: str | None = None, force: bool = False, say: Callable[[str], None] = print
) -> tuple[Path, list[Path]]:
    """Train the arms of a study that are not done, and write its page; returns the page and the traces' folders.

    Args:
        arm: train this one alone; the page then shows those that are done, and names the others.
        force: train again what is done.

    Raises:
        BadInput: options that do not fit, or a folder that holds something else.
    """
    check_study(request.folder, study, request.settings, force)
    arms, write = PLANS[study](request, force and arm is None)
    chosen = chosen_arms(arms, arm)
    begin_study(request.folder, study, request.settings)
    run_arms(chosen, request.folder, say, force)
    finished, missing = [one for one in arms if done(one) is not None], not_run_lines(arms, request.places(study))
    page, lines = write(finished, missing)
    for line in [*lines, *missing] if arm is None else _short(lines, missing):
        say(line)
    return page, [one.folder for one in finished]


def _short(lines: Sequence[str], missing: Sequence[str], most: int = 5) -> list[str]:
    """What is said after a single arm: the claims that could be judged, and a few of the arms that are left."""
    judged = [line for line in lines if not line.startswith("not run")]
    left = len(missing) - most
    more = [f"and {left} more arm{'s' * (left > 1)}; the report lists them all"] if left > 0 else []
    return [*judged, *missing[:most], *more]


def _sentiment(request: Request, force: bool) -> tuple[list[Arm], Writer]:
    study = request.study

    def write(finished: Sequence[Arm], missing: Sequence[str]) -> tuple[Path, list[str]]:
        settings = request.about(study)
        page, judged = write_sentiment(traces(finished), request.folder / "report", settings, missing=missing)
        return page, claim_lines(judged)

    return sentiment_arms(request.folder, study, request.pretrained, request.options), write


def _objectives(request: Request, force: bool) -> tuple[list[Arm], Writer]:
    study = request.study
    arms = objective_arms(request.folder, study, request.data or "", request.pretrained, request.options)
    return arms, _pages("objectives", request, {"data": request.data or DATA} | request.about(study))


def _gate(request: Request, force: bool) -> tuple[list[Arm], Writer]:
    size = SIZE if request.seeds is None else replace(SIZE, seeds=request.seeds)
    file, texts, _ = study_data(request.folder, size, None, force)
    return gate_arms(request.folder, size, file, texts, request.options), _pages("gate", request, asdict(size))


def _pages(study: str, request: Request, settings: dict[str, Any]) -> Writer:
    def write(finished: Sequence[Arm], missing: Sequence[str]) -> tuple[Path, list[str]]:
        found = [one for arm in finished if (one := done(arm)) is not None]
        page, judged = write_arms(study, found, request.folder / "report", settings, missing)
        return page, claim_lines(judged)

    return write


def _squeezing(request: Request, force: bool) -> tuple[list[Arm], Writer]:
    pretrained = request.pretrained
    preset = ON_PRETRAINED if pretrained is not None else preset_named(request.preset or USUAL)
    preset = preset if request.seeds is None else replace(preset, seeds=request.seeds)
    file, texts, missed = study_data(request.folder, preset, request.probe_file, force)
    data = request.probe_file.name if request.probe_file else GENERATED

    def write(finished: Sequence[Arm], missing: Sequence[str]) -> tuple[Path, list[str]]:
        settings = ({"preset": request.preset or USUAL} if pretrained is None else {}) | request.about(preset)
        settings |= {"probe file": data}
        runs = traces(finished)
        page, frame = write_squeezing(runs, request.folder / "report", settings, False, missed, missing)
        return page, study_lines(frame, figures(runs))

    return squeezing_arms(request.folder, preset, file, texts, data, pretrained, request.options), write


PLANS: dict[str, Callable[[Request, bool], tuple[list[Arm], Writer]]] = {
    "sentiment": _sentiment,
    "squeezing": _squeezing,
    "objectives": _objectives,
    "gate": _gate,
}
"""Study → ``(request, force)`` → its arms and what writes its page."""


def traces(arms: Sequence[Arm]) -> dict[str, list[Trace]]:
    """Arm → its traces, by seed, of arms that are done."""
    found: dict[str, list[Trace]] = {}
    for arm in arms:
        found.setdefault(arm.name, []).append(load_trace(arm.folder))
    return found
