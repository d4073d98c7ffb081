"""As many arms of the studies on a pretrained model as fit into a number of minutes, several side by side on one GPU.

    python benchmarks/claims_gpu.py --model FOLDER --statements FILE --probe-file FILE --minutes 4 --out FOLDER

The arms come in order of importance: the four sentiment styles, the ten objectives with DPO★ and AdaDPO, the gates and
their objectives without, then the same with further seeds, then on generated data. After every arm its manifest is
added to OUT/claims-STUDY.jsonl (a few kB an arm); traces stay in --work. What is not reached is listed in
OUT/not-run.txt. ``--built-in N`` trains those of the small models on N cores beside them.
``--model built-in --device cpu --steps 4`` checks the script itself without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dyn_probe.studies.arms.arm import BUILT_IN, GENERATED, Arm
from dyn_probe.studies.arms.arm_manifest import ArmManifest, done, write_collection
from dyn_probe.studies.arms.arm_running import train_arm
from dyn_probe.studies.arms.gate_arms import SIZE, gate_arms
from dyn_probe.studies.arms.objective_arms import DATA, objective_arms
from dyn_probe.studies.arms.pretrained_arms import Pretrained
from dyn_probe.studies.presets import ON_PRETRAINED, PRESETS, USUAL
from dyn_probe.studies.sentiment_runs import Study, sentiment_arms
from dyn_probe.studies.squeezing_runs import squeezing_arms, study_data

SEEDS = 3


def planned(options: argparse.Namespace) -> list[Arm]:
    """All arms, the most important first."""
    pretrained = Pretrained(str(options.model), device=options.device)
    found: list[tuple[int, int, Arm]] = []
    for place, real in enumerate((True, False)):
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
        found += [(arm.seed + 2 * place, group, arm) for group, arms in enumerate(groups) for arm in arms]
    order = sorted(range(len(found)), key=lambda k: (*found[k][:2], k))
    arms = [found[k][2] for k in order]
    arms = [arm for arm in arms if not options.only or arm.study in options.only]
    return [shortened(arm, options.steps) for arm in arms] if options.steps else arms


def built_in(options: argparse.Namespace) -> list[Arm]:
    """The arms of the small models, seed by seed."""
    work, study = options.work / "built-in", Study(seeds=SEEDS)
    size, preset = replace(SIZE, seeds=SEEDS), replace(PRESETS[USUAL], seeds=SEEDS)
    if options.steps:
        study, size, preset = (replace(one, reading_steps=options.steps) for one in (study, size, preset))
    gate_file, gate_texts, _ = study_data(work / "gate", size, None)
    file, texts, _ = study_data(work / "squeezing", preset, None)
    groups = [
        sentiment_arms(work / "sentiment", study),
        objective_arms(work / "objectives", study),
        gate_arms(work / "gate", size, gate_file, gate_texts),
        squeezing_arms(work / "squeezing", preset, file, texts),
    ]
    arms = sorted((arm for group in groups for arm in group), key=lambda arm: arm.seed)
    arms = [replace(arm, config=replace(arm.config, device="cpu")) for arm in arms]
    return [shortened(arm, options.steps) for arm in arms] if options.steps else arms


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
    expected = 30.0
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
                train_arm(arm, arm.folder.parent / "logs" / f"{arm.key}.log")
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
    for count, group in ((options.side_by_side, planned(options)), (options.built_in, built_in(options))):
        if not count:
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
    missing = [f"{arm.model}, {arm.data}: {arm.command}" for arm in arms if done(arm) is None]
    (options.out / "not-run.txt").write_text("\n".join([*missing, ""]), encoding="utf-8")
    print(f"{len(kept)} arms in {time.time() - begun:.0f} s; {len(missing)} not run", flush=True)
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
    parser.add_argument("--most", type=int, default=0, help="at most so many arms; 0: all")
    parser.add_argument("--steps", type=int, default=0, help="so few steps an arm, to check the script; 0: all")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return run(options)


if __name__ == "__main__":
    raise SystemExit(main())
