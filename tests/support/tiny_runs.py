"""Tiny runs of the reference loop: no warm-up, a handful of pairs, a few steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dyn_probe import load_trace
from dyn_probe.objectives import OBJECTIVES, SHAPINGS, STAGES, composes_with, pulls
from dyn_probe.train import loop
from dyn_probe.train.options.config import RunConfig

TRAINED = tuple(name for name in OBJECTIVES if name not in STAGES)
COMPOSED = [(name, shaping) for name in TRAINED for shaping in SHAPINGS if name in composes_with(shaping)]
TINY: dict[str, Any] = dict(
    max_pairs=12, pretrain_steps=0, sft_steps=0, steps=2, batch_size=3, eval_fraction=0.0, warmup_steps=0, lr=1e-3
)
BARE: dict[str, Any] = dict(realised=False, gram_every=0, metric_every=0, split_momentum=False, final_pairs=0)
"""Nothing is measured beside each pair's own numbers: half the time of a tiny run, for tests of something else."""


def tiny(out: Path, **options: Any) -> RunConfig:
    """The configuration of a tiny run."""
    return RunConfig(**{**TINY, "out": str(out), **options})


def uneven(folder: Path, pairs: int = 12) -> str:
    """A file of pairs whose responses have different lengths, on both sides and between pairs."""
    words = ["the", "film", "was", "long", "but", "rewarding", "and", "I", "would", "see", "it", "again"]
    rows = [
        {
            "prompt": f"Review {i}: what do you think?",
            "chosen": " " + " ".join(words[: 1 + (5 * i) % 11]),
            "rejected": " " + " ".join(words[::-1][: 1 + (3 * i + 4) % 10]),
        }
        for i in range(pairs)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "uneven.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def run(out: Path, **options: Any) -> Any:
    """A tiny run's trace."""
    return load_trace(loop.record(tiny(out, **options), progress=False))


@contextmanager
def pulls_seen(monkeypatch: Any) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The pulls that the objective's own function gives to the very terms of each micro-batch."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    real = loop.losses_of

    def spy(method: Any, terms: Any) -> Any:
        seen.append(pulls(method.name, terms, method.hyper, method.shapings))
        return real(method, terms)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "losses_of", spy)
        yield seen
