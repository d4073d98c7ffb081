"""Train the arms of a study one after the other: those that are done stay, each leaves its manifest and its log."""

from __future__ import annotations

import contextlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from dyn_probe.data.model_folders import quiet
from dyn_probe.errors import BadInput
from dyn_probe.studies.arms.arm import Arm, NoStart
from dyn_probe.studies.arms.arm_figures import curves_of, figures_of
from dyn_probe.studies.arms.arm_manifest import ArmManifest, arm_of, done, plain_arm, write_arm
from dyn_probe.trace.failures import naming
from dyn_probe.trace.manifest import now
from dyn_probe.trace.reader import load_trace
from dyn_probe.train.loop import record
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.run import WarmStart

OF_THE_METHOD = {"out", "force", "objective", "hyper", "shaping", "beta"}
"""Options that change nothing before the first step of preference training."""
LOGS = "logs"
STUDY = "study.json"
NOT_SAME = ("seeds", "device")
"""Settings in which a study and its continuation may differ."""


def check_study(folder: Path, study: str, settings: Mapping[str, Any], force: bool) -> None:
    """Refuse a folder that does not hold this study, unless it is new or ``force`` is given; nothing is written.

    Raises:
        BadInput: it holds something else, or the study with other settings.
    """
    if force or not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    file = folder / STUDY
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != _told(study, settings):
        what = "another study, or this one with other settings" if file.is_file() else "something else"
        raise BadInput(
            f"{folder} exists and holds {what}; write --force to replace the study in it, or name another folder "
            "with --out"
        )


def begin_study(folder: Path, study: str, settings: Mapping[str, Any]) -> None:
    """Leave the study's name and settings in its folder, so that it can be continued."""
    with naming(folder / STUDY):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STUDY).write_text(json.dumps(_told(study, settings), indent=1) + "\n", encoding="utf-8")


def _told(study: str, settings: Mapping[str, Any]) -> dict[str, str]:
    return {"study": study} | {name: str(value) for name, value in settings.items() if name not in NOT_SAME}


def run_arms(
    arms: Sequence[Arm], folder: Path, say: Callable[[str], None] = print, force: bool = False
) -> list[ArmManifest]:
    """Train the arms that are not done yet; returns the manifests of all of them.

    Args:
        folder: of the study; each arm's progress goes to ``logs/ARM.log`` in it.
        say: is told the estimate before the first arm, and a line for every arm.
        force: train all of them again.
    """
    found = {arm.key: None if force else done(arm) for arm in arms}
    missing, start = [arm for arm in arms if found[arm.key] is None], CommonStart()
    known = [one.seconds / 60 for one in found.values() if one is not None]
    if missing:
        say(estimate(len(arms), missing, known))
    for number, arm in enumerate(missing, start=1):
        log = folder / LOGS / f"{arm.key}.log"
        say(f"{number} of {len(missing)}: {arm.key} (progress: {log})")
        try:
            found[arm.key] = one = train_arm(arm, log, start)
        except NoStart as error:
            say(f"  not trained: {error}")
            continue
        known.append(one.seconds / 60)
        left = (len(missing) - number) * median(known)
        say(
            f"  done in {minutes(one.seconds / 60)}"
            + (f", about {minutes(left)} left" if number < len(missing) else "")
        )
    return [one for one in found.values() if one is not None]


def estimate(count: int, missing: Sequence[Arm], known: Sequence[float]) -> str:
    """How long the arms will take: by those that are done, else by what such an arm took where it was measured."""
    each = median(known) if known else median(arm.minutes for arm in missing)
    basis = "as the arms that are done" if known else "as measured where it was written"
    return (
        f"{len(missing)} of {count} arms to train, about {minutes(each)} each ({basis}): "
        f"{minutes(each * len(missing))} in all"
    )


def minutes(value: float) -> str:
    """A time in words."""
    if value < 2:
        return f"{max(1, round(60 * value))} s"
    return f"{round(value)} min" if value < 120 else f"{value / 60:.1f} h"


class CommonStart:
    """What the supervised stages left, and the reference's log-probabilities: arms that follow one another and differ
    in their method alone begin with the same, which is made once. Each arm is bitwise what it is alone."""

    def __init__(self) -> None:
        self._same, self._warm = "", WarmStart()

    def of(self, config: RunConfig) -> WarmStart | None:
        """For a run of this configuration; None where it has no supervised stage. Only the last is kept."""
        if not (config.sft_steps or config.pretrain_steps):
            return None
        rest = {name: value for name, value in asdict(config).items() if name not in OF_THE_METHOD}
        if self._same != (same := repr(sorted(rest.items()))):
            self._same, self._warm = same, WarmStart()
        return self._warm


def train_arm(arm: Arm, log: Path, start: CommonStart | None = None) -> ArmManifest:
    """Train and record one arm, and leave its manifest; all of its lines go to a log file.

    Args:
        start: what it may share with the arm before it.
    """
    started = time.perf_counter()
    with naming(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("a", encoding="utf-8", buffering=1)
    with file, contextlib.redirect_stderr(file), quiet():
        print(f"{now()} {arm.key} begins: {arm.command or shlex.join(sys.argv)}", file=file)
        (arm.folder / "arm.json").unlink(missing_ok=True)
        arm.begin()
        warm = None if start is None else start.of(arm.config)
        record(replace(arm.config, force=True), progress=True, warm=warm)
        found = arm_of(plain_arm(manifest_of_arm(arm, time.perf_counter() - started)))  # as it will be read
        write_arm(arm.folder, found)
        print(f"{now()} {arm.key} done in {found.seconds:.0f} s", file=file)
    return found


def manifest_of_arm(arm: Arm, seconds: float) -> ArmManifest:
    """What is kept of an arm whose trace is complete."""
    import transformers

    trace = load_trace(arm.folder)
    versions = {**trace.about.versions, "transformers": transformers.__version__}
    return ArmManifest(
        study=arm.study, arm=arm.name, seed=arm.seed, model=arm.model, data=arm.data, command=arm.command,
        settings=json.loads(json.dumps(arm.settings)), versions=versions, device=device_name(arm.config.device),
        seconds=round(seconds, 1), finished=now(), figures=figures_of(trace), curves=curves_of(trace),
    )  # fmt: skip


def device_name(name: str) -> str:
    """The device that an option stands for: the card's name, or the processor's architecture and threads."""
    import torch

    from dyn_probe.data.models import pick_device

    device: Any = pick_device(name)
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()}, {torch.get_num_threads()} thread(s)"


def not_run(arms: Sequence[Arm]) -> list[Arm]:
    """Those that are not done."""
    return [arm for arm in arms if done(arm) is None]


def not_run_lines(arms: Sequence[Arm], more: str) -> list[str]:
    """A line for each arm that was not run, with its command and ``more``: options of the request that it goes on."""
    return [f"not run: {arm.key}: {arm.command}{more}" for arm in not_run(arms)]
