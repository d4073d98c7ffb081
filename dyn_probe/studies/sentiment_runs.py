"""The sentiment study of Yuan et al. 2024, §4.3: the four styles, trained and recorded with the same settings.

Per seed the built-in model is pretrained once; from there each style has its own supervised stage and DPO, all with the
same settings: a larger learning rate than the paper's 5e-6 for GPT-2 small, since the model is smaller, chosen by the
rule of ``arms.rate_choice``, and a short supervised stage, since a suffix that is certain has no gradient. Lengths and
the supervised stage were chosen by hand on seeds 0 and 1 so that the styles differ as in the paper. A pretrained model
takes the settings of ``presets.TRAININGS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dyn_probe.data.generated.sentiment import read_statements
from dyn_probe.data.generated.styles import STYLES
from dyn_probe.data.model_folders import is_model, save_model
from dyn_probe.errors import BadInput
from dyn_probe.studies.arms.arm import GENERATED, Arm, arm_key, command_of, nothing
from dyn_probe.studies.arms.pretrained_arms import Pretrained
from dyn_probe.train.display import Display
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.setup import prepare
from dyn_probe.train.warmup import reading_pairs, supervised_stage

Options = Sequence[tuple[str, Any]]
"""Option → value, as a command was given them."""


@dataclass(frozen=True)
class Study:
    """Settings of the study, the same for every style."""

    seeds: int = 3
    statements: str = ""
    pairs: int = 2048
    reading_steps: int = 600
    sft_steps: int = 10
    sft_lr: float = 1e-4
    steps: int = 100
    batch_size: int = 16
    lr: float = 1e-4
    schedule: str = "linear"
    warmup_steps: int = 10
    beta: float = 0.1
    every: int = 2
    tokens_every: int = 20
    token_pairs: int = 4
    held_out: float = 0.0625
    metric_every: int = 10
    probes: int = 32

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise BadInput(f"--seeds must be at least 1; got {self.seeds}")
        if self.statements:
            read_statements(self.statements)


def sentiment_arms(
    folder: Path, study: Study, pretrained: Pretrained | None = None, options: Options = (), name: str = "sentiment"
) -> list[Arm]:
    """Every style with every seed, DPO each.

    Args:
        folder: holds one run per style and seed, ``STYLE-SEED``.
        pretrained: the model to start from; None is the built-in one.
        options: what the command was given, for the commands of single arms.
    """
    return [
        style_arm(folder, study, style, seed, pretrained, options, name)
        for seed in range(study.seeds)
        for style in STYLES
    ]  # fmt: skip


def style_arm(
    folder: Path, study: Study, style: str, seed: int, pretrained: Pretrained | None, options: Options, name: str
) -> Arm:
    """One style with one seed."""
    data = f"sentiment:{style}" + (f"@{study.statements}" if study.statements else "")
    out = folder / arm_key(style, seed)
    arm = Arm(
        name, style, seed, run_config(out, folder / "models" / str(seed), data, study, seed),
        data=Path(study.statements).name or GENERATED, command=command_of(name, options, arm_key(style, seed)),
        begin=partial(reading_model, folder / "models" / str(seed), study, seed),
    )  # fmt: skip
    return arm if pretrained is None else on_pretrained(arm, pretrained, data)


def on_pretrained(arm: Arm, pretrained: Pretrained, data: str) -> Arm:
    """The same arm from a pretrained model, with its settings; the method stays."""
    config, own = pretrained.config(arm.folder, data, arm.seed), arm.config
    config = replace(
        config, objective=own.objective, hyper=own.hyper, shaping=own.shaping, sft_objective=own.sft_objective
    )  # fmt: skip
    config = config if own.objective == "dpo" else replace(config, beta=None)
    return replace(
        arm, config=config, model=pretrained.name, begin=nothing, minutes=pretrained.minutes
    )  # fmt: skip


def run_config(out: Path, model: Path, data: str, study: Study, seed: int) -> RunConfig:
    """DPO with the study's settings, on the built-in model after its pretraining."""
    return RunConfig(
        out=str(out), model=str(model), data=data, max_pairs=study.pairs, objective="dpo", beta=study.beta,
        steps=study.steps, batch_size=study.batch_size, lr=study.lr, schedule=study.schedule,
        warmup_steps=study.warmup_steps, pretrain_steps=0, sft_steps=study.sft_steps,
        sft_lr=study.sft_lr, eval_fraction=study.held_out, every=study.every, gram_every=0, realised=True,
        metric_every=study.metric_every, split_momentum=True, tokens_every=study.tokens_every,
        token_pairs=study.token_pairs, mass_every=study.steps, probe_size=study.probes, seed=seed,
    )  # fmt: skip


def reading_model(folder: Path, study: Study, seed: int) -> Path:
    """The built-in model after its pretraining, saved where ``record`` can load it, once; a seed's arms share it."""
    if is_model(folder):
        return folder
    config = RunConfig(out=str(folder / "none"), data="sentiment:single-token", seed=seed, max_pairs=study.batch_size)
    setup = prepare(replace(config, batch_size=1))
    with Display().bar("pretraining", study.reading_steps) as advance:
        supervised_stage(
            setup, reading_pairs(setup.tokenizer), "sft", study.reading_steps, 2e-3,
            lambda loss: advance(1, f"loss {loss:.2f}"),
        )  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_model(folder, study.reading_steps, setup.model, setup.tokenizer)
    return folder
