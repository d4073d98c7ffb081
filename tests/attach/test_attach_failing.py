"""What cannot be recorded, and what goes wrong while recording: one line, and the training goes on bitwise the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="needs trl")
import attach_runs as runs
from attach_matrix import note
from trl import DPOTrainer, KTOTrainer

from dyn_probe import BadInput, load_trace
from dyn_probe.attach import attachment
from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.attach.injected import FindTrainer
from dyn_probe.attach.refusals import newer_than_tested, refusal
from dyn_probe.engine import certificate
from dyn_probe.errors import CertificationError
from dyn_probe.metric import watch
from dyn_probe.probe import Probe

PREPARED = dict(is_fsdp_enabled=False, is_deepspeed_enabled=False, accelerator=SimpleNamespace(parallelism_config=None))


def bare(arguments: dict[str, Any] | None = None, model: Any = None, **attributes: Any) -> DPOTrainer:
    """A trainer without its constructor."""
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer.__dict__.update({**PREPARED, "args": SimpleNamespace(**(arguments or {})), "model": model, **attributes})
    return trainer


def of_single_responses() -> KTOTrainer:
    """The same of the other kind, with a prompt for each response."""
    data = runs.Dataset.from_list([{"prompt_ids": [i], "label": i % 2 == 0} for i in range(4)])
    trainer = KTOTrainer.__new__(KTOTrainer)
    args = SimpleNamespace(per_device_train_batch_size=4, train_sampling_strategy="sequential")
    trainer.__dict__.update({**PREPARED, "args": args, "model": None, "train_dataset": data})
    return trainer


def test_an_ordinary_trainer_is_not_refused():
    assert refusal(bare()) == ""


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (lambda: bare(is_fsdp_enabled=True), "FSDP"),
        (lambda: bare(is_deepspeed_enabled=True), "DeepSpeed"),
        (lambda: bare(is_encoder_decoder=True), "encoder-decoder"),
        (of_single_responses, "KTOTrainer: its rows are no pairs"),
        (lambda: bare({"loss_type": ["sft"]}), "install trl>=1.15"),
        (lambda: bare(model=SimpleNamespace(is_quantized=True)), "QLoRA"),
        (lambda: bare({"torch_compile": True}), "torch_compile=False"),
        (lambda: bare({"use_liger_kernel": True}), "use_liger_kernel=False"),
        (lambda: bare(model=SimpleNamespace(use_kernels=True)), "use_kernels=False"),
        (lambda: bare(padding_free=True), "padding_free=False"),
        (lambda: bare(_is_vision_dataset=True), "images"),
        (lambda: bare(model=SimpleNamespace(peft_config={"x": SimpleNamespace(is_prompt_learning=True)})), "LoRA"),
        (lambda: bare(accelerator=SimpleNamespace(parallelism_config=SimpleNamespace(tp_size=2))), "tensor"),
        (
            lambda: SimpleNamespace(),
            "SimpleNamespace is none of TRL's trainers on pairs: DPOTrainer, CPOTrainer, ORPOTrainer, KTOTrainer",
        ),
    ],
)
def test_a_refusal_names_its_reason(monkeypatch, trainer, words):
    if "1.15" in words:
        monkeypatch.setattr("trl.__version__", "1.14.2")
    said = refusal(trainer())
    note("refusals", (words,), said)
    assert words in said


def test_a_refused_trainer_trains(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("dyn_probe.attach.trl.refusal", lambda trainer: "too round")
    trainer = runs.recorded(tmp_path)
    assert "not recorded, the training continues: too round" in capfd.readouterr().err
    assert not (tmp_path / "run").exists() and len(runs.logged(trainer)) == 2


@pytest.mark.parametrize(
    ("version", "old", "new"),
    [("1.9.2", True, False), ("1.10.0", False, False), ("1.16.3", False, False), ("1.17.0.dev0", False, True)],
)
def test_versions_outside_the_range(monkeypatch, version, old, new):
    monkeypatch.setattr("trl.__version__", version)
    assert ("install trl>=1.10" in refusal(bare())) == old
    assert ("newer than 1.16" in newer_than_tested()) == new


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("broken on purpose")


PLACES = {
    "the batch": (attachment, "MicroStep"),
    "the forward": (Probe, "pairs"),
    "the loss": (attachment.MicroStep, "take_loss"),
    "the scale": (attachment.MicroStep, "_take_scale"),
    "after the backward": (Probe, "complete"),
    "the optimizer's step": (watch.StepWatch, "_ends"),
    "before the step": (attachment.Attachment, "before_step"),
    "after the step": (Probe, "after_update"),
    "the log": (Probe, "log"),
    "the texts": (attachment.PairTexts, "rows"),
    "the end": (Probe, "evaluate"),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_error_of_ours_ends_the_recording_alone(tmp_path, capfd, monkeypatch, place):
    expected = runs.plain(tmp_path)
    monkeypatch.setattr(*PLACES[place], broken)
    trainer = runs.recorded(tmp_path, probe=dict(realised_every=int(place == "after the step")))
    said = capfd.readouterr().err
    assert said.count("the recording stopped at step") == 1 and "broken on purpose" in said
    assert runs.same_weights(trainer, expected) and len(runs.logged(trainer)) == 2
    manifest = load_trace(tmp_path / "run").manifest
    assert manifest["status"] == "stopped" and "broken on purpose" in manifest["reason"]
    assert "training_step" not in vars(trainer) and "clip_grad_norm_" not in vars(trainer.accelerator)


def test_a_failed_certificate_ends_the_recording_alone(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(certificate, "tolerance_for", lambda *_: 1e-12)
    trainer = runs.recorded(tmp_path)
    assert "disagree by more than" in capfd.readouterr().err
    assert runs.same_weights(trainer, runs.plain(tmp_path))


def test_strict_ends_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(certificate, "tolerance_for", lambda *_: 1e-12)
    with pytest.raises(CertificationError):
        runs.recorded(tmp_path, probe=dict(strict=True))
    assert load_trace(tmp_path / "run").manifest["status"] == "stopped"


def test_a_training_that_fails_itself_leaves_a_readable_trace(tmp_path, monkeypatch):
    trainer = runs.trainer_of(tmp_path, callbacks=[runs.ProbeCallback(tmp_path / "run")], max_steps=4)
    original = trainer._compute_loss

    def fail(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    trainer._compute_loss = fail
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trace = load_trace(tmp_path / "run")
    assert trace.manifest["status"] == "stopped" and sorted(set(trace.pairs["step"])) == [0, 1]


def test_a_taken_folder_is_left_alone(tmp_path, capfd):
    for _ in range(2):
        runs.recorded(tmp_path)
    assert "is taken; recording into" in capfd.readouterr().err
    assert len(load_trace(tmp_path / "run-2").pairs) == len(load_trace(tmp_path / "run").pairs) == 4


@pytest.mark.parametrize("given", [dict(every=0), dict(metric_every=-1), dict(metrik_every=1)])
def test_wrong_options_are_refused(given):
    with pytest.raises(BadInput, match=r"every"):
        AttachOptions.of(given)


def test_options_survive_the_environment():
    options = AttachOptions(out="a b", every=3, text=False)
    assert AttachOptions.of_text(options.as_text()) == options


def test_another_trainer_is_passed_over(tmp_path, capfd):
    """What a recorded command puts into every trainer leaves those alone that are no preference trainers."""
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True, bf16=False, save_strategy="no"
    )
    data = runs.Dataset.from_list([{"text": "the film was long"}] * 8)
    trainer = SFTTrainer(
        runs.llama(), config, train_dataset=data, processing_class=runs.built_in_tokenizer(), callbacks=[FindTrainer()]
    )
    trainer.train()
    assert "dyn-probe" not in capfd.readouterr().err and not (tmp_path / "run").exists()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def sharing_the_prompt(backbone: Any) -> Any:
    """The forward of a backbone that computes the prompt of a pair once, in the manner of flash-preference: one row of
    prompt, chosen and rejected inside, a row for each response outside."""
    forward = backbone.forward

    def shared(input_ids: torch.Tensor, attention_mask: torch.Tensor, **others: Any) -> Any:
        chosen, rejected = (ids[kept.bool()] for ids, kept in zip(input_ids, attention_mask, strict=True))
        n = next(i for i, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other)
        positions = torch.cat([torch.arange(len(chosen)), torch.arange(n, len(rejected))])[None]
        side = torch.tensor([0] * n + [1] * (len(chosen) - n) + [2] * (len(rejected) - n))
        seen = ((side[:, None] == side) | (side == 0)).tril()
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
        flat = torch.cat([chosen, rejected[n:]])[None]
        found = forward(input_ids=flat, position_ids=positions, attention_mask=mask, use_cache=False)
        hidden = found.last_hidden_state[0]
        rows = [hidden[: len(chosen)], torch.cat([hidden[:n], hidden[len(chosen) :]])]
        padded = [torch.nn.functional.pad(row, (0, 0, 0, input_ids.shape[1] - len(row))) for row in rows]
        found.last_hidden_state = torch.stack(padded)
        return found

    return shared


def test_a_trainer_that_shares_the_prompt_of_a_pair_is_not_recorded_and_told_why(tmp_path, capfd):
    trainers = []
    for callbacks in ([runs.ProbeCallback(tmp_path / "run")], None):
        trainer = runs.trainer_of(tmp_path, callbacks=callbacks, per_device_train_batch_size=1)
        trainer.model.model.forward = sharing_the_prompt(trainer.model.model)
        trainer.train()
        trainers.append(trainer)
    said = capfd.readouterr().err
    assert "the recording stopped at step 0, the training continues" in said
    assert "fewer tokens than its rows have" in said and "sharing of the prompt between chosen and rejected" in said
    assert load_trace(tmp_path / "run").pairs.empty and runs.same_weights(*trainers)
