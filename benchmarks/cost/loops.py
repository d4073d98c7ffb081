"""The reference loop's own plain step beside TRL's ``DPOTrainer`` on the same batches; what recording adds to either.

Both keep a reference model and evaluate it at every step, train with AdamW and clip to a norm of 1, in float32, without
gradient checkpointing. Each training makes one step that is not timed; then whole trainings take turns.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler

from cost.cells import Loops
from cost.counts import now
from cost.measured import LEAST, about
from cost.shapes import made
from dyn_probe.data.built_in import built_in_tokenizer
from dyn_probe.data.collating import collate
from dyn_probe.trace.writer import TraceWriter
from dyn_probe.train.batches import step_order
from dyn_probe.train.display import Display
from dyn_probe.train.loop import train_step
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.setup import Setup, manifest_of, prepare
from dyn_probe.train.start import start_run

STEPS = 3
"""Timed steps of one training."""
WORDS = ("the", "film", "was", "long", "but", "and", "I", "would", "see", "it", "again")
OFF = {"gram_every": 0, "metric_every": 0, "realised_every": 0, "final_pairs": 0}
TRL: dict[str, dict[str, Any] | None] = {
    "TRL": None,
    "TRL, every pair": OFF,
    "TRL, every pair, with update": {**OFF, "update": True},
    "TRL, step taken apart": {**OFF, "metric_every": 1},
}
"""Kind → options of ``ProbeCallback``; None without it."""
LOOP: dict[str, int] = {"reference loop": 10**6, "reference loop, every pair": 1}
"""Kind → at which steps it records."""
NEVER: dict[str, Any] = {
    "gram_every": 0, "metric_every": 0, "split_momentum": False, "realised": False, "eval_fraction": 0.0,
    "mass_every": 0, "final_pairs": 0, "warmup_steps": 0, "precompute_reference": False, "lr": 1e-6,
}  # fmt: skip


def pair_rows(count: int, length: int) -> list[dict[str, str]]:
    """Texts whose rows have about ``length`` tokens, half of them prompt; every word is a token."""
    half = length // 2

    def text(start: int) -> str:
        return "".join(" " + WORDS[(start + i * (1 + start % 5)) % len(WORDS)] for i in range(half - 1))

    return [{"prompt": text(3 * i), "chosen": text(3 * i + 1), "rejected": text(3 * i + 2)} for i in range(count)]


def measure_loops(cell: Loops, device: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds of a step by every kind, in turns; ratios are to TRL's plain one of the same round.

    Args:
        rounds, seconds: as for ``measured.measure``.
    """
    began, taken = time.monotonic(), []
    shape, length, pairs = cell.shape, cell.length, cell.pairs
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made(shape, "all", "float32", "cpu").save_pretrained(place / "model")
        built_in_tokenizer().save_pretrained(place / "model")
        rows = pair_rows(pairs * (STEPS + 1), length)
        kinds: dict[str, Callable[[], list[float]]] = {
            **{name: _by_trl(rows, place, pairs, device, TRL[name]) for name in TRL if name in cell.kinds},
            **{name: _by_loop(rows, place, pairs, device, LOOP[name]) for name in LOOP if name in cell.kinds},
        }
        same = _same_batches(rows, place, pairs, device)
        while len(taken) < rounds and (len(taken) < LEAST or time.monotonic() - began < seconds):
            taken.append({name: statistics.median(kind()) for name, kind in kinds.items()})
    found = {}
    for name in kinds:
        ratios = [one[name] / one["TRL"] for one in taken]
        found[name] = {"seconds": statistics.median(one[name] for one in taken), "ratio": statistics.median(ratios),
                       "least": min(ratios), "most": max(ratios)}  # fmt: skip
    return {
        "cell": cell.name, "device": about(device), "rounds": len(taken), "kinds": found, "same_batches": same,
        "seconds": time.monotonic() - began,
    }  # fmt: skip


def _config(place: Path, rows: list[dict[str, str]], pairs: int, device: str, every: int) -> RunConfig:
    data = place / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return RunConfig(
        out=str(place / "run"), model=str(place / "model"), data=str(data), batch_size=pairs, device=device,
        steps=len(rows) // pairs, every=every, force=True, **NEVER,
    )  # fmt: skip


def _order(count: int, pairs: int) -> list[int]:
    """Places of the rows in the order in which the reference loop trains on them."""
    return [i for step in range(count // pairs) for i in step_order(count, pairs, step, 0)]


def _by_loop(rows: list[dict[str, str]], place: Path, pairs: int, device: str, every: int) -> Callable[[], list[float]]:
    def train() -> list[float]:
        setup = prepare(_config(place, rows, pairs, device, every))
        seconds = []
        with TraceWriter(setup.config.folder, manifest_of(setup), force=True) as writer:
            run = start_run(setup, writer, Display(False), None)
            setup.model.train()
            with run.probe:
                for step in range(len(rows) // pairs):
                    began = now(device)
                    train_step(run, step)
                    seconds.append(now(device) - began)
        return seconds[1:]

    return train


def _trainer(rows: list[dict[str, str]], place: Path, pairs: int, device: str, callbacks: list[Any]) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):  # type: ignore[misc]
        """Takes the rows as they come."""

        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    arguments = DPOConfig(
        output_dir=str(place / "trl"), max_steps=len(rows) // pairs, per_device_train_batch_size=pairs, report_to=[],
        save_strategy="no", use_cpu=device == "cpu", bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        logging_steps=1000, learning_rate=1e-6, max_grad_norm=1.0, max_length=None,
    )  # fmt: skip
    policy, reference = (AutoModelForCausalLM.from_pretrained(place / "model", dtype="float32") for _ in range(2))
    ordered = Dataset.from_list([rows[i] for i in _order(len(rows), pairs)])
    return InOrder(
        policy, reference, arguments, callbacks=callbacks, train_dataset=ordered, processing_class=built_in_tokenizer()
    )


def _by_trl(
    rows: list[dict[str, str]], place: Path, pairs: int, device: str, options: dict[str, Any] | None
) -> Callable[[], list[float]]:
    from transformers import TrainerCallback

    from dyn_probe.attach.trl import ProbeCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Seconds from one step's end to the next one's."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(now(device))

    def train() -> list[float]:
        clock = Clock()
        more = [] if options is None else [ProbeCallback(place / "attached", text=False, force=True, **options)]
        torch.manual_seed(0)
        _trainer(rows, place, pairs, device, [clock, *more]).train()
        return [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)]

    return train


def _same_batches(rows: list[dict[str, str]], place: Path, pairs: int, device: str) -> bool:
    """Whether both train on the same tokens, batch by batch."""
    setup = prepare(_config(place, rows, pairs, device, 1))
    order = _order(len(rows), pairs)
    loader = _trainer(rows, place, pairs, device, []).get_train_dataloader()
    return all(
        _tokens(batch["input_ids"], batch["attention_mask"]) == _own(setup, order[k * pairs : (k + 1) * pairs])
        for k, batch in enumerate(loader)
    )


def _own(setup: Setup, places: list[int]) -> list[list[int]]:
    batch = collate([setup.pairs[i] for i in places], setup.pad_id)
    return _tokens(batch.input_ids, batch.attention_mask)


def _tokens(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[keep.bool()].tolist() for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]
