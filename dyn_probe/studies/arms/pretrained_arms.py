"""Arms on a pretrained model: the configuration that all studies share, and what such a model is called."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from dyn_probe.data.models import pick_device
from dyn_probe.studies.presets import Training, training_named
from dyn_probe.train.options.config import RunConfig


@dataclass(frozen=True)
class Pretrained:
    """A model that a study's arms start from.

    Args:
        model: folder or hub id.
        lora_rank: train adapters of this rank; 0 trains all weights.
        device: as ``record --device``.
        preset: whose settings; None takes those for the device.
    """

    model: str
    lora_rank: int = 0
    device: str = "auto"
    preset: str | None = None

    @cached_property
    def training(self) -> Training:
        """The settings of the preset, or for the device's type."""
        row = training_named(self.preset, pick_device(self.device).type)
        return replace(row, lr=row.lora_lr, sft_lr=row.lora_lr) if self.lora_rank else row

    @property
    def minutes(self) -> float:
        """What an arm takes on this type of device."""
        on_gpu = pick_device(self.device).type == "cuda"
        return self.training.minutes if on_gpu else self.training.minutes_on_cpu

    @property
    def name(self) -> str:
        """As the tables have it: the folder's name."""
        name = Path(self.model).name
        return f"{name}, LoRA {self.lora_rank}" if self.lora_rank else name

    def config(self, out: Path, data: str, seed: int) -> RunConfig:
        """DPO on ``data`` with everything recorded that the claims need; a method replaces the objective."""
        row = self.training
        return RunConfig(
            out=str(out), model=self.model, data=data, max_pairs=row.pairs, max_length=row.max_length, beta=row.beta,
            steps=row.steps, batch_size=row.batch_size, lr=row.lr, sft_steps=row.sft_steps, sft_lr=row.sft_lr,
            pretrain_steps=0, eval_fraction=row.held_out, every=row.every, gram_every=0, metric_every=row.metric_every,
            split_momentum=bool(row.metric_every), realised=True, tokens_every=row.steps, mass_every=row.steps,
            probe_size=row.probes, seed=seed, lora_rank=self.lora_rank, device=self.device,
        )  # fmt: skip
