"""The examples of docs/attach.md for other trainers: a subclass of ``transformers.Trainer``, a loop with accelerate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from dyn_probe import PairBatch, Probe, load_trace, sequence_logps
from dyn_probe.attach.packed import packed_pairs

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "attach.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def rows() -> list[dict[str, torch.Tensor]]:
    """Four rows, chosen and then rejected, of different lengths."""
    torch.manual_seed(1)
    response = torch.zeros(4, 9, dtype=torch.long)
    for i, end in enumerate((9, 6, 8, 7)):
        response[i, 3:end] = 1
    attention = response.clone()
    attention[:, :3] = 1
    return [
        {"input_ids": ids, "attention_mask": mask, "response_mask": said}
        for ids, mask, said in zip(torch.randint(3, 60, (4, 9)), attention, response, strict=True)
    ]


def together(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of a batch."""
    return {name: torch.stack([one[name] for one in examples]) for name in examples[0]}


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the examples may use."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    return {
        "Trainer": Trainer, "Probe": Probe, "PairBatch": PairBatch, "sequence_logps": sequence_logps,
        "packed_pairs": packed_pairs,
        "logsigmoid": torch.nn.functional.logsigmoid, "AdamW": torch.optim.AdamW, "Accelerator": Accelerator,
        "model": LlamaForCausalLM(config), "batches": [PairBatch(**together(rows()))] * 2,
    }  # fmt: skip


def first_step(names: dict[str, Any]) -> tuple[float, float]:
    """‖g_w‖ of the first pair and ⟨g_w, g_l⟩, by plain autograd before training."""
    model, (batch, _) = names["model"], names["batches"]
    logps = sequence_logps(model, batch)
    flat = []
    for row in (logps[0], logps[2]):
        parts = torch.autograd.grad(row, list(model.parameters()), retain_graph=True)
        flat.append(torch.cat([g.flatten().double() for g in parts]))
    return float(flat[0].norm()), float(flat[0] @ flat[1])


def check(folder: str, expected: tuple[float, float]) -> None:
    """Two steps of two pairs, exact."""
    trace = load_trace(folder)
    assert trace.closed and list(trace.pairs["step"]) == [0, 0, 1, 1] and len(trace.pushes)
    found = trace.pairs.iloc[0]
    assert np.allclose((found["grad_norm_chosen"], found["grad_inner"]), expected, rtol=1e-4)
    assert trace.manifest["certificate"]["max_relative_error"] < 1e-5


def test_a_trainer_of_ones_own(names, tmp_path):
    expected = first_step(names)
    exec(EXAMPLES[0], names)
    settings = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to=[],
        save_strategy="no", remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    data = rows() * 2
    trainer = names["PairTrainer"](names["model"], settings, train_dataset=data, data_collator=together)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(data)
    trainer.train()
    check("runs/trainer", expected)


def test_a_loop_with_accelerate(names):
    expected = first_step(names)
    exec(EXAMPLES[1], names)
    check("runs/accelerate", expected)
    assert load_trace("runs/accelerate").pairs["realised_delta_chosen"].notna().all()


def test_a_trainer_on_a_padding_free_collator(names, tmp_path):
    expected = first_step(names)
    exec(EXAMPLES[2], names)
    settings = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to=[],
        save_strategy="no", remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    data = []
    for one in rows() * 2:
        kept = one["attention_mask"].bool()
        labels = one["input_ids"].masked_fill(one["response_mask"] == 0, -100)
        data.append({"input_ids": one["input_ids"][kept].tolist(), "labels": labels[kept].tolist()})
    collator = DataCollatorWithFlattening()
    trainer = names["PackedTrainer"](names["model"], settings, train_dataset=data, data_collator=collator)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(data)
    trainer.train()
    trainer.probe.close()
    check("runs/packed", expected)


def test_the_page_has_all_examples():
    assert len(EXAMPLES) == 3
