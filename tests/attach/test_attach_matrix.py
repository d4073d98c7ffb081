"""Combinations of settings of TRL's trainers: each recorded exactly. ``make matrix`` writes the page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="needs trl")
pytest.importorskip("peft", reason="needs peft")
import attach_matrix as matrix
import attach_runs as runs
from attach_checks import gradients

from dyn_probe import load_trace
from dyn_probe.attach.refusals import refusal
from dyn_probe.attach.trainer_kinds import FUSED, trl_version
from dyn_probe.attach.trl import ProbeCallback
from dyn_probe.probe.given import Told


def trainer_of(cell: matrix.Cell, folder: Path, callbacks: list[Any] | None = None) -> Any:
    """The trainer of a cell: one step of two pairs."""
    from peft import LoraConfig

    loss, weights, precision, checkpointing = cell
    kind, options = matrix.LOSSES[loss]
    options = {**options, **matrix.PRECISIONS[precision], **matrix.CHECKPOINTING[checkpointing], "max_steps": 1}
    if "dtype" in options:
        options["dtype"] = getattr(torch, options["dtype"])
    if precision == matrix.NEEDS_GPU:
        options["use_cpu"] = False
    if weights == "LoRA":
        options["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    makers = {"dpo": runs.trainer_of, "kto": runs.kto}
    make = makers.get(kind) or partial(runs.without_reference, kind=kind)
    trainer = make(folder, callbacks=callbacks, **options)
    if precision == matrix.NEEDS_GPU:  # one step is not enough for a scale to come down from where gradients overflow
        trainer.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=64.0)
    return trainer


def sides(trainer: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch of ``DPOTrainer``, or of ``KTOTrainer`` on pairs side by side, in the form of the others."""
    if "chosen_labels" in batch:
        return batch
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    columns = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
    halves = {name: values.chunk(2) for name, values in columns.items()}
    return {f"{side}_{name}": half[i] for name, half in halves.items() for i, side in enumerate(("chosen", "rejected"))}


def exactness(cell: matrix.Cell, folder: Path) -> str:
    """``exact``, or what is not; where it is refused, the words."""
    callback = ProbeCallback(folder / "run", gram_every=1, metric_every=1, update=True)
    trainer = trainer_of(cell, folder, [callback])
    if why := refusal(trainer):
        return f"{matrix.REFUSED}{why}"
    trainer.train()
    trace = load_trace(folder / "run")
    if trace.manifest["status"] != "closed" or "recheck" in trace.manifest:
        return str(trace.manifest.get("recheck") or trace.manifest["reason"])
    plain = trainer_of(cell, folder)
    batch = plain._prepare_inputs(next(iter(plain.get_train_dataloader())))
    _, rows, _ = gradients(plain, sides(plain, batch), whole=False)
    plain.train()
    if not runs.same_weights(trainer, plain):
        return "the weights are not those of a training without the recorder"
    pairs, (entry,) = trace.pairs, runs.logged(trainer)
    room = 1e-4 if cell[2] == "float32" else 5e-2
    means = trainer.args.__class__.__name__ == "ORPOConfig" or matrix.LOSSES[cell[0]][1].get("loss_type") in (
        "ipo", "simpo", "alphapo",
    )  # fmt: skip
    averages_in_half = cell[2] == "bfloat16 weights" and (
        not cell[0].startswith(("DPO", "KTO")) or trl_version() < FUSED
    )
    rounded = 1e-2 if averages_in_half else 1e-4
    for side in ("chosen", "rejected"):
        logps = (pairs[f"logp_{side}"] / (pairs[f"len_{side}"] if means else 1)).mean()
        if not np.isclose(logps, entry[f"logps/{side}"], rtol=rounded, atol=1e-4):
            return f"logps/{side}: {logps} and {entry[f'logps/{side}']}"
    if not np.isclose(pairs["loss"].mean(), entry["loss"], rtol=rounded, atol=1e-4):
        return f"loss: {pairs['loss'].mean()} and {entry['loss']}"
    gram = (rows @ rows.T).cpu().numpy()
    norms = np.concatenate([pairs["grad_norm_chosen"], pairs["grad_norm_rejected"]])
    if not np.allclose(norms, np.sqrt(gram.diagonal()), rtol=room):
        return f"norms: {norms} and {np.sqrt(gram.diagonal())}"
    if not np.allclose(pairs["grad_inner"], gram[[0, 1], [2, 3]], rtol=10 * room, atol=room * gram.max()):
        return f"inner products: {pairs['grad_inner']} and {gram[[0, 1], [2, 3]]}"
    return matrix.EXACT


def may_be_refused(cell: matrix.Cell, words: str) -> bool:
    """Whether the cell is one that docs/attach.md says is refused, with these words."""
    return cell[0] == "DPO sft" and trl_version() < FUSED and words.startswith(f"{matrix.REFUSED}before TRL 1.15")


@pytest.mark.parametrize("cell", matrix.covering(matrix.AXES), ids=matrix.name_of)
def test_covering_cells_are_exact(tmp_path, cell):
    found = exactness(cell, tmp_path)
    matrix.note("settings", cell, found)
    assert found == matrix.EXACT or may_be_refused(cell, found)


@pytest.mark.slow
@pytest.mark.parametrize("cell", list(matrix.others()), ids=matrix.name_of)
def test_all_other_cells_are_exact(tmp_path, cell):
    found = exactness(cell, tmp_path)
    matrix.note("settings", cell, found)
    assert found == matrix.EXACT


@pytest.mark.gpu
@pytest.mark.parametrize("cell", matrix.on_gpu(), ids=matrix.name_of)
def test_cells_that_need_a_gpu_are_exact(tmp_path, cell):
    found = exactness(cell, tmp_path)
    matrix.note("settings", cell, found)
    assert found == matrix.EXACT


def test_any_two_settings_meet():
    cells, wanted = matrix.covering(matrix.AXES), set()
    for i, one in enumerate(matrix.AXES):
        for j, other in enumerate(matrix.AXES[:i]):
            wanted |= {(i, a, j, b) for a in one for b in other}
    assert wanted <= {(i, cell[i], j, cell[j]) for cell in cells for i in range(4) for j in range(4)}
    assert len(cells) < 100


def test_the_page_says_what_is_not_exact(tmp_path, monkeypatch):
    monkeypatch.setenv(matrix.RESULTS, str(tmp_path / "results"))
    matrix.note("settings", ("CPO", "full", "float32", "none"), matrix.EXACT)
    matrix.note("settings", ("CPO", "full", "float32", "default"), "norms: 1 and 2")
    matrix.note("launchers", ("torchrun", "2"), matrix.EXACT)
    matrix.note("refusals", ("FSDP",), "FSDP shards the weights")
    monkeypatch.setattr("trl.__version__", "1.10.0")
    matrix.note("settings", ("CPO", "LoRA", "float32", "none"), matrix.EXACT)
    for checkpointing in ("none", "default"):
        matrix.note("settings", ("DPO sft", "full", "float32", checkpointing), f"{matrix.REFUSED}before TRL 1.15")
    page = matrix.page(tmp_path / "results")
    assert "| 1.10.0 | 3 | 1; 2 refused (before TRL 1.15) |" in page
    assert "| CPO | none; default: norms: 1 and 2 | – |" in page and "Of 2 combinations of settings" in page
    assert "| `torchrun` | 2 | exact |" in page and "- FSDP shards the weights" in page


def test_a_wrong_row_is_no_exact_cell(tmp_path, monkeypatch):
    real = Told.of
    monkeypatch.setattr(Told, "of", staticmethod(lambda logps, *a, **k: real(logps.detach() * 1.01, *a, **k)))
    found = exactness(("SimPO", "full", "float32", "none"), tmp_path)
    assert found.startswith("logps/chosen is ") and "by the recorded rows" in found
