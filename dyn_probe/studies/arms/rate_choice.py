"""How a study's learning rate is chosen: under DPO alone, on pairs and a seed that are in none of its tables.

The rule (``chosen_rate``): of the rates in RATES, the smallest whose accuracy on held-out pairs, over the seeds in
SEEDS, is within one standard error of the highest. All methods of a study train at that one rate.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dyn_probe.data.generated.statements import generate_statements
from dyn_probe.studies.arms.arm import Arm
from dyn_probe.studies.arms.arm_manifest import ArmManifest
from dyn_probe.studies.claims import pooled
from dyn_probe.studies.presets import PRESETS, USUAL
from dyn_probe.studies.published import PUBLISHED
from dyn_probe.studies.sentiment_runs import Study, reading_model
from dyn_probe.studies.sentiment_runs import run_config as sentiment_config
from dyn_probe.studies.squeezing_runs import PAIR, read_data, run_config, warm_model
from dyn_probe.train.options.config import RunConfig

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SEEDS = (100,)
HELD_OUT = 0.2
"""Share of the squeezing study's pairs that are held out here; its own runs hold none out."""
BARE: dict[str, Any] = {
    "mass_every": 0, "probe_set": "", "probe_size": RunConfig().probe_size, "metric_every": 0, "split_momentum": False,
    "tokens_every": 0, "realised": False,
}  # fmt: skip
"""What need not be recorded for the choice."""


def sentiment_choice(folder: Path, study: Study | None = None) -> list[Arm]:
    """DPO on long-suffix answers, each rate with each seed, on statements that the study's tables do not have."""
    study, file = study or Study(), folder / "statements.jsonl"
    if not file.exists():
        known = {one.text for one in generate_statements(study.pairs)}
        fresh = [one for one in generate_statements(2 * study.pairs, seed=SEEDS[0]) if one.text not in known]
        rows = [{"text": one.text, "sentiment": one.sentiment} for one in fresh[: study.pairs]]
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    arms = []
    for seed in SEEDS:
        model = folder / "models" / str(seed)
        for rate in RATES:
            name = rate_name(rate)
            config = sentiment_config(folder / f"{name}-{seed}", model, f"sentiment:long-suffix@{file}", study, seed)
            config = replace(config, lr=rate, every=study.steps, **BARE)
            arms.append(Arm("sentiment", name, seed, config, begin=partial(reading_model, model, study, seed)))
    return arms


def squeezing_choice(folder: Path) -> list[Arm]:
    """DPO of the usual preset, each rate with each seed, on generated prompts that come after those of the tables."""
    preset, file = PRESETS[USUAL], folder / "probe_set.jsonl"
    more = replace(preset, pairs=round(preset.pairs / (1 - HELD_OUT)))
    probes, texts = read_data(None, replace(preset, pairs=4 * preset.pairs))
    fresh = [one for one in probes.prompts[preset.pairs :] if set(one.responses) >= PAIR][: more.pairs]
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace(probes, prompts=tuple(fresh)).save(file)
    arms = []
    for seed in SEEDS:
        model = folder / "models" / str(seed)
        for rate in RATES:
            name = rate_name(rate)
            config = run_config(folder / f"{name}-{seed}", model, file, PUBLISHED["DPO"], preset, seed)
            config = replace(config, lr=rate, max_pairs=more.pairs, eval_fraction=HELD_OUT, every=config.steps, **BARE)
            arms.append(Arm("squeezing", name, seed, config, begin=partial(warm_model, model, file, texts, more, seed)))
    return arms


def rate_name(rate: float) -> str:
    """What an arm of this rate is called."""
    return f"lr={rate:g}"


def by_rate(found: Sequence[ArmManifest], study: str) -> dict[float, list[ArmManifest]]:
    """Rate → its arms, by seed."""
    return {
        rate: [one for one in found if one.study == study and one.arm == rate_name(rate)]
        for rate in RATES
    }  # fmt: skip


def chosen_rate(found: Sequence[ArmManifest], study: str) -> float:
    """The rate that the rule chooses."""
    means = {rate: pooled([one.figures["accuracy"] for one in arms]) for rate, arms in by_rate(found, study).items()}
    best = max(means.values(), key=lambda one: one.value)
    return min(rate for rate, one in means.items() if one.value >= best.value - best.error)


def rate_lines(found: Sequence[ArmManifest]) -> list[tuple[str, ...]]:
    """A row per study and rate: held-out accuracy and change of chosen on the training pairs, with standard errors."""
    rows: list[tuple[str, ...]] = []
    for study in dict.fromkeys(one.study for one in found):
        best = chosen_rate(found, study)
        for rate, arms in by_rate(found, study).items():
            accuracy, moved = (pooled([one.figures[name] for one in arms]) for name in ("accuracy", "chosen"))
            change = f"{moved.value:+.2f} ± {moved.error:.2f}".replace("-", "−")
            right = f"{accuracy.value:.2f} ± {accuracy.error:.2f}"
            rows.append((study, f"{rate:g}", right, change, "**chosen**" if rate == best else ""))
    return rows
