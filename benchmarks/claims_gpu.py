"""As many arms of the studies on a pretrained model as fit into a number of minutes, several side by side on one GPU.

    python benchmarks/claims_gpu.py --model FOLDER --statements FILE --probe-file FILE --minutes 4 --out FOLDER

The arms come in the order of TIERS: on real data the ten objectives with DPO★ and AdaDPO, the gates and their
objectives without, the four sentiment styles; then on generated data; then further seeds. Within a tier those that the
most claims need come first. Arms of the collections that ``--done`` names are left out. After every arm its manifest is
added to OUT/claims-STUDY.jsonl (a few kB an arm); traces stay in --work. What is not reached is listed in
OUT/not-run.txt. ``--built-in N`` trains those of the small models on N cores beside them; ``--references`` begins with
the two runs that are shipped as reference traces, and copies their folders to OUT/reference. An arm on long responses
takes 20 to 43 GB of GPU memory: at most three side by side on 140 GB.
``--model built-in --device cpu --steps 4`` checks the script itself without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import queue
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dyn_probe.studies.arms.arm import BUILT_IN, GENERATED, Arm
from dyn_probe.studies.arms.arm_manifest import ArmManifest, done, read_collection, write_collection
from dyn_probe.studies.arms.arm_running import CommonStart, train_arm
from dyn_probe.studies.arms.claims_table import STUDIES
from dyn_probe.studies.arms.gate_arms import SIZE, gate_arms
from dyn_probe.studies.arms.objective_arms import DATA, objective_arms
from dyn_probe.studies.arms.pretrained_arms import Pretrained
from dyn_probe.studies.arms.reference_arms import REFERENCE, reference_arms
from dyn_probe.studies.presets import ON_PRETRAINED, PRESETS, USUAL
from dyn_probe.studies.published import OTHER_FORMS
from dyn_probe.studies.sentiment_runs import Study, sentiment_arms
from dyn_probe.studies.squeezing_runs import squeezing_arms, study_data

SEEDS = 3
TIERS: tuple[tuple[str, bool, int], ...] = (
    ("objectives", True, 0), ("squeezing", True, 0), ("sentiment", True, 0), ("sentiment", False, 0),
    ("squeezing", False, 0), ("objectives", False, 0),
    *((study, True, seed) for seed in range(1, SEEDS) for study in ("sentiment", "objectives", "squeezing")),
    *((study, False, seed) for seed in range(1, SEEDS) for study in ("sentiment", "objectives", "squeezing")),
)  # fmt: skip
"""(study, on real data, seed) of the pretrained model's arms, the most important first."""
NEEDED = Counter((study.study, arm) for study in STUDIES for claim in study.claims for arm in claim.arms)
"""(study, arm) → how many claims need it."""
OTHERS = tuple(OTHER_FORMS)
"""Arms that come last in their tier."""


def planned(options: argparse.Namespace) -> list[Arm]:
    """All arms on the pretrained model, the most important first."""
    pretrained = Pretrained(str(options.model), device=options.device)
    found = [(real, arm) for real in (True, False) for arm in on_data(options, pretrained, real)]
    tiers = {(study, real, seed): place for place, (study, real, seed) in enumerate(TIERS)}
    found.sort(key=lambda one: (tiers[one[1].study, one[0], one[1].seed], *rank(one[1])))
    arms = [arm for _, arm in found]
    arms = reference_arms(options.work / "reference", pretrained, options.probe_file) * options.references + arms
    arms = [arm for arm in arms if not options.only or arm.study in options.only]
    return [shortened(arm, options.steps) for arm in arms] if options.steps else arms


def rank(arm: Arm) -> tuple[bool, int]:
    """Sorts the arms of a tier."""
    return arm.name in OTHERS, -NEEDED[arm.study, arm.name]


def on_data(options: argparse.Namespace, pretrained: Pretrained, real: bool) -> list[Arm]:
    """The arms on real, or on generated data."""
    work = options.work / ("real" if real else "generated")
    statements, probe_file = (str(options.statements), options.probe_file) if real else ("", None)
    study = Study(seeds=SEEDS, statements=statements)
    given = [("--model", options.model), ("--statements", statements)]
    groups = [sentiment_arms(work / "sentiment", study, pretrained, given)]
    data = f"{DATA}@{statements}" if real else DATA
    given = [("--model", options.model), ("--data", data if real else "")]
    groups.append(objective_arms(work / "objectives", study, data, pretrained, given))
    preset = replace(ON_PRETRAINED, seeds=SEEDS)
    file, texts, _ = study_data(work / "squeezing", preset, probe_file)
    given = [("--model", options.model), ("--probe-file", probe_file)]
    name = probe_file.name if probe_file else GENERATED
    groups.append(squeezing_arms(work / "squeezing", preset, file, texts, name, pretrained, given))
    return [arm for group in groups for arm in group]


def built_in(options: argparse.Namespace) -> list[Arm]:
    """The arms of the small models, seed by seed; those that no claim needs last."""
    work, study = options.work / "built-in", Study(seeds=SEEDS)
    size, preset = replace(SIZE, seeds=SEEDS), replace(PRESETS[USUAL], seeds=SEEDS)
    if options.steps:
        study, size, preset = (replace(one, reading_steps=options.steps) for one in (study, size, preset))
    gate_file, gate_texts, _ = study_data(work / "gate", size, None)
    file, texts, _ = study_data(work / "squeezing", preset, None)
    groups = [
        objective_arms(work / "objectives", study),
        gate_arms(work / "gate", size, gate_file, gate_texts),
        squeezing_arms(work / "squeezing", preset, file, texts),
        sentiment_arms(work / "sentiment", study),
    ]
    arms = sorted(
        (arm for group in groups for arm in group), key=lambda arm: (not NEEDED[arm.study, arm.name], arm.seed)
    )
    arms = [replace(arm, config=replace(arm.config, device="cpu")) for arm in arms]
    return [shortened(arm, options.steps) for arm in arms] if options.steps else arms


def missing(arms: Sequence[Arm], files: Sequence[Path]) -> list[Arm]:
    """Those that the collections do not have, or have with other settings."""
    known = {(one.study, one.arm, one.seed, one.model, one.data): one.settings for one in read_collection(files)}
    return [
        arm for arm in arms
        if known.get((arm.study, arm.name, arm.seed, arm.model, arm.data)) != json.loads(json.dumps(arm.settings))
    ]  # fmt: skip


def shortened(arm: Arm, steps: int) -> Arm:
    """The same with a few steps on a few pairs, for a check of the script."""
    config = replace(
        arm.config, steps=steps, sft_steps=1, max_pairs=24, batch_size=4, every=1, metric_every=2, mass_every=steps,
        max_length=512, probe_size=2, tokens_every=min(arm.config.tokens_every, steps),
    )  # fmt: skip
    return replace(arm, config=config)


def worker(
    arms: Sequence[Arm], tasks: Any, results: Any, deadline: float, threads: int, locks: dict[tuple[str, int], Any]
) -> None:
    """Train arms of the common queue until it is empty, or another would end after the deadline.

    Args:
        locks: of the small models, which the arms of a study and seed share: one of them makes it.
    """
    if locks:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(threads)
    expected, start = 30.0, CommonStart()
    while time.time() + expected < deadline:
        try:
            number = tasks.get_nowait()
        except queue.Empty:
            return
        started, arm = time.time(), arms[number]
        try:
            if done(arm) is None:
                with locks.get((arm.study, arm.seed), contextlib.nullcontext()), silence():
                    arm.begin()
                train_arm(arm, arm.folder.parent / "logs" / f"{arm.key}.log", start)
            results.put((arm.folder, ""))
        except Exception:
            results.put((arm.folder, traceback.format_exc()))
        expected = time.time() - started


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No progress on standard error."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def run(options: argparse.Namespace) -> int:
    """Start the workers, and keep what they finish."""
    begun = time.time()
    deadline, cores = begun + 60 * options.minutes, os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    results, workers, arms = context.Queue(), [], []
    for count, plan in ((options.side_by_side, planned), (options.built_in, built_in)):
        group = missing(plan(options), options.done) if count else []
        if not group:
            continue
        tasks = context.Queue()
        for number in range(min(len(group), options.most or len(group))):
            tasks.put(number)
        small = group[0].model == BUILT_IN and options.model != BUILT_IN
        locks = {(arm.study, arm.seed): context.Lock() for arm in group} if small else {}
        given = (group, tasks, results, deadline, 1 if small else max(1, cores // 2 // count), locks)
        workers += [context.Process(target=worker, args=given) for _ in range(count)]
        arms += group
    for one in workers:
        one.start()
    kept: list[ArmManifest] = []
    while any(one.is_alive() for one in workers) and time.time() < deadline:
        collect(results, arms, kept, options.out, begun)
    for one in workers:
        one.terminate()
        one.join(5)
    while not results.empty():
        collect(results, arms, kept, options.out, begun)
    left = [f"{arm.model}, {arm.data}: {arm.command}" for arm in arms if done(arm) is None]
    (options.out / "not-run.txt").write_text("\n".join([*left, ""]), encoding="utf-8")
    print(f"{len(kept)} arms in {time.time() - begun:.0f} s; {len(left)} not run", flush=True)
    return 0 if kept else 1


def collect(results: Any, arms: Sequence[Arm], kept: list[ArmManifest], out: Path, begun: float) -> None:
    """Take one result, if there is one within a second, and write the study's file again."""
    try:
        folder, wrong = results.get(timeout=1)
    except queue.Empty:
        return
    arm = next(one for one in arms if one.folder == folder)
    found = done(arm)
    if wrong or found is None:
        print(f"{time.time() - begun:5.0f} s  {arm.study} {arm.model} {arm.key} FAILED\n{wrong}", flush=True)
        with (out / "failed.txt").open("a", encoding="utf-8") as file:
            file.write(f"{arm.study} {arm.model} {arm.key}\n{wrong}\n")
        return
    kept.append(found)
    print(
        f"{time.time() - begun:5.0f} s  {arm.study} {arm.model} {arm.data} {arm.key}: {found.seconds:.0f} s", flush=True
    )
    write_collection(out / f"claims-{arm.study}.jsonl", [one for one in kept if one.study == arm.study])
    if arm.study == REFERENCE:
        shutil.copytree(arm.folder, out / REFERENCE / arm.name, dirs_exist_ok=True)


def main() -> int:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of the pretrained model")
    parser.add_argument("--statements", required=True, type=Path, help="statements with a sentiment, JSON lines")
    parser.add_argument("--probe-file", required=True, type=Path, help="probe responses, JSON lines")
    parser.add_argument("--out", required=True, type=Path, help="folder of the manifests")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="folder of the traces")
    parser.add_argument("--minutes", type=float, default=4.0, help="no arm goes on after so many minutes")
    parser.add_argument("--side-by-side", type=int, default=4, help="arms trained at once")
    parser.add_argument("--built-in", type=int, default=0, help="arms of the small models trained at once beside them")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="*", default=[], help="studies (sentiment, objectives, squeezing); else all")
    parser.add_argument("--done", nargs="*", type=Path, default=[], help="collections of arms that are left out")
    parser.add_argument("--references", action="store_true", help="also record the two reference traces, first")
    parser.add_argument("--most", type=int, default=0, help="at most so many arms; 0: all")
    parser.add_argument("--steps", type=int, default=0, help="so few steps an arm, to check the script; 0: all")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return run(options)


if __name__ == "__main__":
    raise SystemExit(main())
