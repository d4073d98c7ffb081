"""What recording every pair of a TRL training launches beside the trainer's own step, counted by the dispatcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="needs trl")
import attach_runs as runs
from cost.counts import Calls
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback

from dyn_probe import load_trace
from dyn_probe.attach.trl import ProbeCallback

MOST = 1.35
"""Calls of a layer in a recorded step over those in the trainer's own, as in a loop of one's own."""
ONCE = 750
"""Calls that a recorded step may make whatever the model's depth: the head, the batch, the answers."""
STEPS = 5
ONLY_PAIRS = {"every": 1, "gram_every": 0, "metric_every": 0, "realised_every": 0, "final_pairs": 0, "text": False}


class Counting(TrainerCallback):
    """Counts from the beginning of one step to the beginning of the next, so with what a recorder does between them."""

    def __init__(self) -> None:
        self.steps: list[Calls] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.close()
        self.steps.append(Calls())
        self.steps[-1].__enter__()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the step that is counted."""
        if self.steps:
            self.steps[-1].__exit__(None, None, None)


def llama(depth: int) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**runs.SMALL, "num_hidden_layers": depth}, num_key_value_heads=1))


def gpt2(depth: int) -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=1024, n_embd=24, n_layer=depth, n_head=2, n_positions=128))


def calls(folder: Path, make: Any, depth: int, recorded: bool, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of a step in the middle; plain and recorded trainings have the same rows there."""
    monkeypatch.setitem(runs.MORE, "llama", lambda seed=0: make(depth))
    counting, folder = Counting(), folder / f"{depth}-{recorded}"
    folder.mkdir()
    probe = [ProbeCallback(folder / "run", **ONLY_PAIRS)] if recorded else []
    options = dict(max_steps=STEPS, logging_steps=100, dtype=torch.bfloat16)
    runs.trainer_of(folder, "llama", [counting, *probe], **options).train()
    if recorded:
        assert set(load_trace(folder / "run").pairs["step"]) == set(range(STEPS))
    return counting.steps[2].counted.total()


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_layer_of_an_attached_step_launches_little_more_than_the_trainers_own(make, tmp_path, monkeypatch):
    plain, recorded = ([calls(tmp_path, make, depth, on, monkeypatch) for depth in (2, 4)] for on in (False, True))
    layer, recorded_layer = ((deep - shallow) / 2 for shallow, deep in (plain, recorded))
    assert layer > 100
    assert recorded_layer <= MOST * layer
    assert recorded[0] - plain[0] - 2 * (recorded_layer - layer) <= ONCE
