"""What recording a training by TRL costs beside the trainer's own step.

    python benchmarks/attached.py [--lengths 64 128] [--pairs 4] [--steps 10] [--rounds 3] [--device cpu]

GPT-2 small's shape (124 M parameters, tied head, random weights), ``DPOTrainer`` with its defaults but the precision
(float32): reference model, AdamW, clipping, gradient checkpointing off. Rows have ``--lengths`` tokens, half of them
prompt. Plain and recorded trainings take turns within each round, in one process; the time of a step is the
trainer's from one ``on_step_end`` to the next, so that the first step of each training (its self-check) is left out.
Ratios are recorded over plain of the same round: of the medians of their steps, and of the means, which have in them
what only every tenth step takes (Gram, the step taken apart, realised changes; so ``--steps`` is a multiple of 10).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback
from trl import DPOConfig, DPOTrainer

from dyn_probe.attach.trl import ProbeCallback
from dyn_probe.data.built_in import built_in_tokenizer

OFF = {"gram_every": 0, "metric_every": 0, "realised_every": 0, "final_pairs": 0, "text": False}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "every pair": OFF,
    "every pair, with update": {**OFF, "update": True},
    "step taken apart": {**OFF, "metric_every": 1},
    "as by default": {"every": 1},
}
"""Variant → options of ``ProbeCallback``; None without it."""


class Clock(TrainerCallback):
    """Seconds of every optimizer step, from the beginning of one to the beginning of the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now


def rows(count: int, length: int) -> Dataset:
    """Texts whose rows have about ``length`` tokens, half of them prompt; every word is a token."""
    words = ["the", "film", "was", "long", "but", "and", "I", "would", "see", "it", "again"]
    half = length // 2

    def text(start: int) -> str:
        return "".join(" " + words[(start + i * (1 + start % 5)) % len(words)] for i in range(half - 1))

    return Dataset.from_list(
        [{"prompt": text(3 * i), "chosen": text(3 * i + 1), "rejected": text(3 * i + 2)} for i in range(count)]
    )


def train(variant: str, length: int, pairs: int, steps: int, device: str) -> list[float]:
    """Seconds of each step but the first."""
    options, clock = VARIANTS[variant], Clock()
    torch.manual_seed(0)
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    with tempfile.TemporaryDirectory() as folder:
        callbacks: list[Any] = [clock]
        if options is not None:
            callbacks.append(ProbeCallback(Path(folder) / "run", **options))
        arguments = DPOConfig(
            output_dir=folder, max_steps=steps + 1, per_device_train_batch_size=pairs, report_to=[], save_strategy="no",
            use_cpu=device == "cpu", bf16=False, gradient_checkpointing=False, disable_tqdm=True, logging_steps=1000,
        )  # fmt: skip
        DPOTrainer(
            GPT2LMHeadModel(config), GPT2LMHeadModel(config), arguments, callbacks=callbacks,
            train_dataset=rows(pairs * (steps + 1), length), processing_class=built_in_tokenizer(),
        ).train()  # fmt: skip
    return clock.seconds


def against(of: Callable[[list[float]], float], rounds: list[list[float]], plain: list[list[float]]) -> str:
    """Seconds and ratio to the first variant, with the ratio's smallest and largest over the rounds."""
    seconds = [of(one) for one in rounds]
    ratios = [one / of(other) for one, other in zip(seconds, plain, strict=True)]
    middle = f"{statistics.median(seconds):.3f} | {statistics.median(ratios):.3f}"
    return f"{middle} ({min(ratios):.3f} to {max(ratios):.3f})"


def main() -> None:
    """Print a table of recorded over plain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    given = parser.parse_args()
    print("| L | variant | median step (s) | ratio of medians (rounds) | mean step (s) | ratio of means (rounds) |")
    print("|---" * 6 + "|")
    for length in given.lengths:
        found: dict[str, list[list[float]]] = {}
        for _ in range(given.rounds):
            for variant in given.variants:
                seconds = train(variant, length, given.pairs, given.steps, given.device)
                found.setdefault(variant, []).append(seconds)
        for variant, rounds in found.items():
            cells = [against(of, rounds, found[given.variants[0]]) for of in (statistics.median, statistics.mean)]
            print(f"| {length} | {variant} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
