"""A ``DPOTrainer`` with the recorder on: its own numbers in the rows, exact gradients, the same training bitwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="needs trl")
import attach_runs as runs
from attach_checks import check_against_autograd, check_against_logs
from trl import DPOConfig, DPOTrainer

from dyn_probe import Probe, load_trace
from dyn_probe.attach.trainer_kinds import FUSED, KINDS, trl_version
from dyn_probe.attach.trl import ProbeCallback

LOSSES = {
    **{
        name: dict(loss_type=[name])
        for name in (
            "sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
            "apo_down", "discopop", "sft", "sigmoid_norm",
        )
    },
    "exo_pair": dict(loss_type=["exo_pair"], label_smoothing=1e-3),
    "robust": dict(loss_type=["robust"], label_smoothing=0.1),
    "sigmoid and sft": dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.3]),
    "smoothed": dict(loss_type=["sigmoid"], label_smoothing=0.0, f_divergence_type="js_divergence"),
    "three": dict(loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0]),
    "weighted": dict(loss_type=["sigmoid"], use_weighting=True),
}  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_recorded_exactly(tmp_path, capfd, loss):
    if loss == "sft" and trl_version() < FUSED:
        runs.recorded(tmp_path, max_steps=1, **LOSSES[loss])
        assert "'sft' alone has no token log-probabilities; install trl>=1.15" in capfd.readouterr().err
        return
    model = "gpt2" if len(loss) % 2 else "llama"
    options = dict(LOSSES[loss], max_steps=1)
    trainer = runs.recorded(tmp_path, model, **options)
    trace = load_trace(tmp_path / "run")
    check_against_logs(trainer, trace)
    check_against_autograd(tmp_path, trace, model, **options)
    assert trace.manifest["status"] == "closed" and trace.manifest["certificate"]["max_relative_error"] < 1e-5
    separate = trace.pairs["separate_backward"]
    beside = "sft" in LOSSES[loss]["loss_type"] and trl_version() < FUSED
    assert bool(separate.all()) == (loss == "sft" or beside) or loss == "hinge"
    assert (trace.steps["law1_error"].dropna() < 1e-4).all()
    assert runs.same_weights(trainer, runs.plain(tmp_path, model, **options))


VANISHING: dict[str, tuple[bool, dict[str, Any]]] = {
    "plain": (False, {}),
    "with a likelihood term": (False, dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.3])),
    "hinge": (True, dict(loss_type=["hinge"])),
    "ipo": (True, dict(loss_type=["ipo"])),
    "two": (True, dict(loss_type=["sigmoid", "hinge"])),
    "against itself": (True, dict(loss_type=["sigmoid", "sigmoid"], loss_weights=[-1.0, 1.0])),
    "turned": (True, dict(loss_type=["sigmoid"], loss_weights=[-1.0])),
    "no beta": (True, dict(beta=0.0)),
    "smoothed": (True, dict(label_smoothing=0.1)),
    "long": (True, dict(ld_alpha=0.5)),
    "divergence": (True, dict(f_divergence_type="js_divergence")),
    "weighted": (True, dict(use_weighting=True)),
}


@pytest.mark.parametrize("setting", VANISHING)
def test_which_losses_have_pulls_that_vanish(tmp_path, setting):
    wanted, options = VANISHING[setting]
    args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)
    assert KINDS["DPOTrainer"].vanishing(args) is wanted
    assert KINDS["CPOTrainer"].vanishing(args)


class OwnLoss(DPOTrainer):
    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super()._compute_loss(*args, **kwargs)


@pytest.mark.parametrize(("kind", "asked"), [(DPOTrainer, False), (OwnLoss, True)])
def test_a_pull_is_asked_for_where_it_can_vanish(tmp_path, monkeypatch, kind, asked):
    """Of a class with a loss of its own nothing is known."""
    said, pairs = [], Probe.pairs

    def see(*args: Any, vanishing: bool = True, **kwargs: Any) -> None:
        said.append(vanishing)
        pairs(*args, vanishing=vanishing, **kwargs)

    monkeypatch.setattr(Probe, "pairs", see)
    trainer = runs.trainer_of(tmp_path, callbacks=[ProbeCallback(tmp_path / "run")], kind=kind)
    trainer.train()
    assert said == [asked] * 2
    pairs = load_trace(tmp_path / "run").pairs
    assert pairs[["grad_inner", "pull_chosen"]].notna().all(axis=None) and not pairs["separate_backward"].any()


SETTINGS: dict[str, dict[str, Any]] = {
    "precomputed reference": dict(precompute_ref_log_probs=True),
    "synchronised reference": dict(sync_ref_model=True, ref_model_sync_steps=1, max_steps=3),
    "accumulation": dict(gradient_accumulation_steps=2),
    "checkpointing": dict(gradient_checkpointing=True),
    "reentrant checkpointing": dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}),
    "unclipped": dict(max_grad_norm=0.0),
    "adafactor": dict(optim="adafactor"),
}


@pytest.mark.parametrize("model", runs.MODELS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_the_trainer(tmp_path, setting, model):
    options = SETTINGS[setting]
    trainer = runs.recorded(tmp_path, model, **options)
    trace = load_trace(tmp_path / "run")
    check_against_logs(trainer, trace, options.get("gradient_accumulation_steps", 1))
    check_against_autograd(tmp_path, trace, model, **options)
    assert (trace.pairs["pull_chosen"] > 0.05).all() and (trace.pairs["pull_chosen"] < 0.15).all()
    assert (trace.steps["law7_error"].dropna() < 1e-3).all()
    for name in ("update_delta_chosen", "realised_delta_chosen", "batch_delta_rejected"):
        assert trace.pairs[name].notna().all(), name
    assert runs.same_weights(trainer, runs.plain(tmp_path, model, **options))


@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_with_the_reference_by_switching_them_off(tmp_path, precompute, checkpointing):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    options = dict(peft_config=config, precompute_ref_log_probs=precompute, gradient_checkpointing=checkpointing)
    trainer = runs.recorded(tmp_path, **options)
    trace = load_trace(tmp_path / "run")
    check_against_logs(trainer, trace)
    check_against_autograd(tmp_path, trace, "llama", **options)
    first = trace.pairs[trace.pairs["step"] == 0]
    assert np.allclose(first["logp_chosen"], first["ref_logp_chosen"], atol=1e-4)
    assert runs.same_weights(trainer, runs.plain(tmp_path, **options))


@pytest.mark.parametrize(
    "setting", [dict(bf16=True), dict(dtype=torch.bfloat16), dict(bf16=True, gradient_checkpointing=True)]
)
@pytest.mark.parametrize("model", runs.MODELS)
def test_half_precision(tmp_path, setting, model):
    trainer = runs.recorded(tmp_path, model, **setting)
    trace = load_trace(tmp_path / "run")
    rounded = "dtype" in setting and trl_version() < FUSED  # the trainer itself averages in bfloat16
    check_against_logs(trainer, trace, room=1e-2 if rounded else 1e-4)
    check_against_autograd(tmp_path, trace, model, room=5e-2, **setting)
    assert trace.manifest["certificate"]["max_relative_error"] < 5e-2
    assert runs.same_weights(trainer, runs.plain(tmp_path, model, **setting))


def test_evaluation_batches_are_not_recorded(tmp_path):
    options = dict(eval_dataset=runs.pairs(4), eval_strategy="steps", eval_steps=1, eval_on_start=True)
    trainer = runs.recorded(tmp_path, **options)
    trace = load_trace(tmp_path / "run")
    assert len(trace.pairs) == 4
    check_against_logs(trainer, trace)
    assert runs.same_weights(trainer, runs.plain(tmp_path, **options))


def test_iterable_data(tmp_path, monkeypatch):
    whole = runs.pairs
    monkeypatch.setattr(runs, "pairs", lambda: whole().to_iterable_dataset())
    trainer = runs.recorded(tmp_path)
    check_against_logs(trainer, load_trace(tmp_path / "run"))
    assert runs.same_weights(trainer, runs.plain(tmp_path))


def test_a_mixture_of_experts_with_a_loss_of_its_routers(tmp_path):
    """Rows are exact; the routers' loss belongs to no pair and is among the other terms."""
    trainer = runs.recorded(tmp_path, "mixtral", max_steps=1)
    trace = load_trace(tmp_path / "run")
    check_against_autograd(tmp_path, trace, "mixtral", max_steps=1)
    assert trace.pairs["separate_backward"].all() and trace.pairs["loss"].isna().all()
    assert 0 < trace.steps["other_terms"].iloc[0] < 0.05
    assert runs.same_weights(trainer, runs.plain(tmp_path, "mixtral", max_steps=1))


def test_token_weights_leave_pulls_empty_and_gradients_exact(tmp_path):
    trainer = runs.recorded(tmp_path, ld_alpha=0.5)
    trace = load_trace(tmp_path / "run")
    check_against_autograd(tmp_path, trace, "llama")
    assert trace.pairs["separate_backward"].all() and trace.pairs["pull_chosen"].isna().all()
    assert trace.pairs["update_delta_chosen"].notna().all() and not len(trace.pushes)
    assert runs.same_weights(trainer, runs.plain(tmp_path, ld_alpha=0.5))


def test_dropout_leaves_the_random_numbers_alone(tmp_path):
    options = dict(model="gpt2", disable_dropout=False)
    trainer = runs.recorded(tmp_path, **options)
    trace = load_trace(tmp_path / "run")
    assert trace.pairs["realised_delta_chosen"].notna().all()
    assert runs.same_weights(trainer, runs.plain(tmp_path, **options))
