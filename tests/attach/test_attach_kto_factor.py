"""``KTOTrainer`` whose last micro-batch holds no pair: κ is read from the end of its backward all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="needs trl")
import attach_runs as runs

from dyn_probe import load_trace
from dyn_probe.attach.trl import ProbeCallback

OFF = {"gram_every": 0, "metric_every": 0, "realised_every": 0, "final_pairs": 0, "update": False}
PARTS = ["own_chosen", "own_rejected", "past", "decay"]
KEY = ["step", "pair_id", "side"]
STEPS, CLIP = 3, 0.01


def rows() -> Any:
    """For each step four responses: two of one prompt, and then two without a partner."""
    data = runs.pairs()
    found = []
    for step in range(STEPS):
        for i, side in ((step, "chosen"), (step, "rejected"), (4 + step, "chosen"), (7 - step, "rejected")):
            found.append({"prompt": data[i]["prompt"], "completion": data[i][side], "label": side == "chosen"})
    return runs.Dataset.from_list(found)


def trained(folder: Any, scaled: bool = False, **probe: Any) -> Any:
    """The trace of two micro-batches a step, the second without pairs; clipped where no scaler unscales."""
    callback = ProbeCallback(folder / "run", **{**OFF, **probe})
    trainer = runs.kto(
        folder, [callback], data=rows(), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=STEPS,
        train_sampling_strategy="sequential", optim="sgd", optim_args="momentum=0.9", weight_decay=0.1,
        max_grad_norm=0.0 if scaled else CLIP, loss_type="apo_zero_unpaired",
    )  # fmt: skip
    if scaled:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.train()
    trace = load_trace(folder / "run")
    assert trace.manifest["status"] == "closed" and trace.manifest["unpaired"]["without_partner"] == 2 * STEPS
    assert len(trace.pairs) == STEPS
    return trace


@pytest.mark.parametrize("scaled", [False, True], ids=["clipped", "scaled"])
def test_own_parts_are_those_of_the_step_that_was_made(tmp_path, scaled):
    """SGD's P is 1: what was known before the step is what it did."""
    known = trained(tmp_path / "known", scaled, metric="previous").pushes.set_index(KEY)
    applied = trained(tmp_path / "applied", scaled, metric_every=1)
    wanted = applied.pushes.set_index(KEY)
    assert sorted(known.index) == sorted(wanted.index) and len(known) == 2 * STEPS
    assert "reason" not in (applied.manifest.get("pushes") or {})
    size = wanted[[*PARTS, "others"]].abs().sum(axis=1)
    for part in PARTS:
        assert wanted[part].notna().all() and (wanted[part] != 0).any()
        assert np.max((known[part] - wanted[part]).abs() / size) < 1e-4


@pytest.mark.parametrize("scaled", [False, True], ids=["clipped", "scaled"])
def test_the_scale_and_the_clipping_are_in_them(tmp_path, scaled):
    """Own parts of the first step by hand, −ηκ c_w ‖g_w‖² and −ηκ c_l ‖g_l‖²; accumulation halves the coefficients."""
    trace = trained(tmp_path, scaled, metric="previous")
    first, row = trace.pushes[trace.pushes["step"] == 0].set_index("side"), trace.pairs.iloc[0]
    step = trace.steps.iloc[0]
    factor = 1.0 if scaled else CLIP / step["grad_norm"]  # unscaling undoes the scale
    for side, sign in (("chosen", 1), ("rejected", -1)):
        wanted = sign * step["learning_rate"] * factor * row[f"pull_{side}"] / 2 * row[f"grad_norm_{side}"] ** 2
        assert first.loc[side, f"own_{side}"] == pytest.approx(wanted, rel=1e-3)
