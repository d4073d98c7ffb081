"""Sizes of the studies: of the squeezing study, one row per preset, and of an arm on a pretrained model. No torch, so
that the command line can name them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dyn_probe.errors import BadInput, unknown


@dataclass(frozen=True)
class Preset:
    """Settings of the study, the same for every method."""

    pairs: int
    probes: int
    seeds: int
    vocabulary: int
    width: int
    layers: int
    heads: int
    reading_steps: int
    sft_epochs: int
    epochs: int
    batch_size: int = 8
    reading_lr: float = 2e-3
    sft_lr: float = 5e-4
    lr: float = 3e-4
    beta: float = 0.1
    prompt_length: int = 120
    """Most characters of a prompt: its end is kept, from a whole word on."""
    answer_length: int = 200
    """Most characters of a response: its beginning is kept, to a whole word."""


USUAL = "cpu"
"""The preset that is used where none is named."""

PRESETS: dict[str, Preset] = {
    "tiny": Preset(24, 12, 1, 600, 64, 2, 4, 60, 2, 4),
    "cpu": Preset(400, 32, 3, 2048, 128, 3, 4, 400, 1, 1),
    "gpu": Preset(500, 200, 3, 8192, 512, 8, 8, 4000, 3, 5, 16, 1e-3, 2e-4, 1e-4, 0.1, 400, 600),
}
"""Name → settings: seconds to a minute, minutes on two cores, minutes on a GPU. The rate of ``cpu`` was chosen by the
rule of arms/rate_choice.py."""

ON_PRETRAINED = Preset(540, 48, 1, 0, 0, 0, 0, 0, 0, 1)
"""Of these, the study on a pretrained model takes the data alone; how it trains stands in TRAININGS."""


def preset_named(name: str, seeds: int | None = None) -> Preset:
    """A row of PRESETS, with another number of seeds if one is given."""
    if name not in PRESETS:
        raise BadInput(unknown("preset", name, PRESETS))
    return PRESETS[name] if seeds is None else replace(PRESETS[name], seeds=seeds)


@dataclass(frozen=True)
class Training:
    """How an arm on a pretrained model is trained and recorded: the same for every study and method.

    The learning rate of the full weights is that of the paper (5e-6, Yuan et al. 2024); none was tried on the pairs and
    seeds of the claims.
    """

    minutes: float
    """What an arm took on a GPU (SmolLM2-135M, every weight trained, float32)."""
    minutes_on_cpu: float
    """What it took on two CPU cores, about."""
    pairs: int
    sft_steps: int
    steps: int
    max_length: int
    metric_every: int
    probes: int
    every: int = 5
    batch_size: int = 8
    sft_lr: float = 1e-5
    lr: float = 5e-6
    lora_lr: float = 1e-4
    beta: float = 0.1
    held_out: float = 0.1


TRAININGS: dict[str, Training] = {
    "gpu": Training(1.0, 30.0, 540, 20, 60, 256, 15, 48),
    "cpu": Training(1.0, 25.0, 360, 15, 40, 96, 0, 16),
}
"""Preset → settings: about a minute an arm on a GPU, four side by side; within 45 minutes on two CPU cores, with fewer
steps, shorter rows and no step taken apart. Without a name the device decides."""


def training_named(name: str | None, device: str) -> Training:
    """A row of TRAININGS, or the one for a type of device where no name is given.

    Raises:
        BadInput: there is no such row.
    """
    if name is not None and name not in TRAININGS:
        raise BadInput(f"{unknown('preset', name, TRAININGS)} (with --model)")
    return TRAININGS[name or ("gpu" if device == "cuda" else "cpu")]
