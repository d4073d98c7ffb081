"""``CPOTrainer`` (SimPO too) and ``ORPOTrainer`` of TRL with the recorder on: exact, and the same training bitwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="needs trl")
pytest.importorskip("trl.experimental.cpo", reason="needs a TRL with CPOTrainer")
import attach_runs as runs
from attach_checks import gradients

from dyn_probe import load_trace
from dyn_probe.attach.trl import ProbeCallback

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "cpo": ("cpo", dict()),
    "cpo smoothed": ("cpo", dict(label_smoothing=0.1, model="gpt2")),
    "cpo hinge": ("cpo", dict(loss_type="hinge", cpo_alpha=0.5)),
    "cpo ipo": ("cpo", dict(loss_type="ipo", cpo_alpha=0.0)),
    "simpo": ("cpo", dict(loss_type="simpo", cpo_alpha=0.0, model="gpt2")),
    "simpo with nll": ("cpo", dict(loss_type="simpo", cpo_alpha=0.7, gradient_accumulation_steps=2)),
    "alphapo": ("cpo", dict(loss_type="alphapo", alpha=0.25)),
    "orpo": ("orpo", dict()),
    "orpo tied": ("orpo", dict(model="gpt2", gradient_checkpointing=True)),
    "orpo autocast": ("orpo", dict(bf16=True)),
}


def recorded(folder: Any, kind: str, options: dict[str, Any]) -> Any:
    """A trainer after its training with the recorder on."""
    callback = ProbeCallback(folder / "run", gram_every=1, metric_every=1, realised_every=1, update=True)
    trainer = runs.without_reference(folder, kind, [callback], **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_trainer_without_reference_is_recorded_exactly(tmp_path, capfd, setting):
    kind, options = SETTINGS[setting]
    trainer = recorded(tmp_path, kind, options)
    assert "by the recorded rows" not in capfd.readouterr().err
    trace = load_trace(tmp_path / "run")
    assert trace.manifest["status"] == "closed" and trace.pairs["ref_logp_chosen"].isna().all()
    size = 2 * options.get("gradient_accumulation_steps", 1)
    for entry in runs.logged(trainer):
        rows = trace.pairs[trace.pairs["step"] == entry["step"] - 1]
        assert len(rows) == size
        means = kind == "orpo" or options.get("loss_type") in ("ipo", "simpo", "alphapo")
        for side in ("chosen", "rejected"):
            value = (rows[f"logp_{side}"] / (rows[f"len_{side}"] if means else 1)).mean()
            assert np.isclose(value, entry[f"logps/{side}"], rtol=1e-4, atol=1e-4)
        assert np.isclose(rows["loss"].mean(), entry["loss"], rtol=1e-4, atol=1e-4)
    plain = runs.without_reference(tmp_path, kind, **options)
    plain.train()
    assert runs.same_weights(trainer, plain)


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "orpo autocast"])
def test_rows_and_pulls_are_those_of_plain_autograd(tmp_path, setting):
    """``Σ_i c_i g_i`` is the gradient of the whole loss where its terms reach the responses alone."""
    kind, options = SETTINGS[setting]
    recorded(tmp_path, kind, {**options, "max_steps": 1})
    trainer = runs.without_reference(tmp_path, kind, **options)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    logps, rows, whole = gradients(trainer, batch)
    trace = load_trace(tmp_path / "run")
    found = trace.pairs.iloc[:2]
    gram = rows @ rows.T
    norms = gram.diagonal().sqrt().numpy()
    assert np.allclose(np.concatenate([found["logp_chosen"], found["logp_rejected"]]), logps.numpy(), rtol=1e-4)
    assert np.allclose(np.concatenate([found["grad_norm_chosen"], found["grad_norm_rejected"]]), norms, rtol=1e-4)
    inner = gram[[0, 1], [2, 3]].numpy()
    assert np.allclose(found["grad_inner"], inner, rtol=1e-3, atol=1e-4 * float(gram.diagonal().max()))
    pulls = np.concatenate([-found["pull_chosen"], found["pull_rejected"]]) / 2
    explained = torch.as_tensor(pulls) @ rows
    if kind == "cpo":
        assert float((explained - whole).norm() / whole.norm()) < 1e-3
    rest = 1 - float((explained @ whole) ** 2 / ((explained @ explained) * (whole @ whole)))
    if len(trace.pairs) == 2:
        assert np.isclose(trace.steps["other_terms"].iloc[0], rest, atol=1e-4)


def test_the_words_of_the_trace(tmp_path):
    for kind, options, name in (("cpo", dict(), "cpo"), ("cpo", SETTINGS["simpo"][1], "simpo"), ("orpo", {}, "orpo")):
        recorded(tmp_path / name, kind, {**options, "max_steps": 1})
        about = load_trace(tmp_path / name / "run").about
        assert about.objective.name == name and about.objective.hyper["beta"] == 0.2
        text = load_trace(tmp_path / name / "run").examples
        assert text["chosen"].str.contains("the film").all() and text["prompt"].str.contains("Review").all()
