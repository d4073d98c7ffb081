"""The sentiment study of Yuan et al. 2024, §4.3: the four styles, trained and recorded with the same settings.

Per seed the built-in model is pretrained once; from there each style has its own supervised stage and DPO, all with the
same settings: a larger learning rate than the paper's 5e-6 for GPT-2 small, since the model is smaller, and a short
supervised stage, since a suffix that is certain has no gradient. They were chosen on seeds 0 and 1 so that the styles
differ as in the paper; seed 2 was not used for this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dyn_probe.data.generated.sentiment import read_statements
from dyn_probe.data.generated.styles import STYLES
from dyn_probe.data.model_folders import quiet
from dyn_probe.errors import BadInput
from dyn_probe.train.display import Display
from dyn_probe.train.loop import record
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.setup import prepare
from dyn_probe.train.warmup import reading_pairs, supervised_stage


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
    lr: float = 3e-4
    schedule: str = "linear"
    warmup_steps: int = 10
    beta: float = 0.1
    every: int = 2
    tokens_every: int = 20
    token_pairs: int = 4

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise BadInput(f"--seeds must be at least 1; got {self.seeds}")
        if self.statements:
            read_statements(self.statements)


def train_styles(folder: Path, study: Study, display: Display | None = None) -> dict[str, list[Path]]:
    """Train and record every style with every seed.

    Args:
        folder: holds one run per style and seed, ``STYLE-SEED``; older ones of the same names are replaced.
        study: the settings.
        display: shows how far it is; silent without one.

    Returns:
        Style → its runs, by seed.
    """
    runs: dict[str, list[Path]] = {style: [] for style in STYLES}
    shown = display or Display(False)
    for seed in range(study.seeds):
        with shown.bar(f"seed {seed}: pretraining", study.reading_steps) as advance:
            model = reading_model(folder / "models" / str(seed), study, seed, with_loss(advance))
        with shown.bar(f"seed {seed}: styles", len(STYLES)) as advance:
            for style in STYLES:
                advance(0, style)
                with quiet():
                    runs[style].append(record(run_config(folder / f"{style}-{seed}", model, style, study, seed), False))
                advance(1, style)
    return runs


def with_loss(advance: Callable[..., None]) -> Callable[[float], None]:
    """A bar's ``advance`` as a callback that is told the loss after every step."""
    return lambda loss: advance(1, f"loss {loss:.2f}")


def run_config(out: Path, model: Path, style: str, study: Study, seed: int) -> RunConfig:
    """One style's run."""
    data = f"sentiment:{style}" + (f"@{study.statements}" if study.statements else "")
    return RunConfig(
        out=str(out), model=str(model), data=data, max_pairs=study.pairs, objective="dpo", beta=study.beta,
        steps=study.steps, batch_size=study.batch_size, lr=study.lr, schedule=study.schedule,
        warmup_steps=study.warmup_steps, pretrain_steps=0, sft_steps=study.sft_steps,
        sft_lr=study.sft_lr, eval_fraction=0.0, every=study.every, gram_every=0, realised=False, seed=seed,
        tokens_every=study.tokens_every, token_pairs=study.token_pairs, force=True,
    )  # fmt: skip


def reading_model(folder: Path, study: Study, seed: int, progress: Callable[[float], None] = lambda _: None) -> Path:
    """The built-in model after its pretraining, saved where ``record`` can load it; the styles of a seed share it."""
    config = RunConfig(out=str(folder / "none"), data="sentiment:single-token", seed=seed, max_pairs=study.batch_size)
    setup = prepare(replace(config, batch_size=1))
    supervised_stage(setup, reading_pairs(setup.tokenizer), "sft", study.reading_steps, 2e-3, progress)
    model: Any = setup.model
    with quiet():
        model.save_pretrained(folder)
        setup.tokenizer.save_pretrained(folder)
    return folder
