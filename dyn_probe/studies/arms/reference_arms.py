"""The two small runs of a pretrained model that are shipped as reference traces: plain DPO, and DPO that goes wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dyn_probe.studies.arms.arm import GENERATED, Arm, command_of
from dyn_probe.studies.arms.pretrained_arms import Pretrained

REFERENCE = "reference"
PAIRS, STEPS = 64, 40
FALLING = "sentiment:prefix-suffix"
"""Data on which chosen falls under DPO."""


def reference_arms(folder: Path, pretrained: Pretrained, pairs: Path) -> list[Arm]:
    """DPO as most people run it, and DPO on answers that share nearly all of their tokens.

    Args:
        pairs: file of real pairs; no token maps are drawn of these, whose responses are long.
    """
    return [
        _arm(folder, "dpo", str(pairs), pairs.name, pretrained, maps=0),
        _arm(folder, "dpo-falling", FALLING, GENERATED, pretrained, maps=2),
    ]


def _arm(folder: Path, name: str, data: str, called: str, pretrained: Pretrained, maps: int) -> Arm:
    config = pretrained.config(folder / name, data, 0)
    config = replace(
        config, max_pairs=PAIRS, steps=STEPS, every=2, metric_every=10, split_momentum=True,
        tokens_every=STEPS if maps else 0, token_pairs=maps or config.token_pairs, mass_every=STEPS // 2, probe_size=6,
        max_length=256,
    )  # fmt: skip
    command = command_of(REFERENCE, [], name)
    return Arm(REFERENCE, name, 0, config, pretrained.name, called, command, minutes=pretrained.minutes)
