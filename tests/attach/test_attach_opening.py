"""What a recorded trainer cannot have: said before anything is made, or with the trace closed; nothing stays behind."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("trl", reason="needs trl")
import attach_runs as runs

from dyn_probe import BadInput, load_trace
from dyn_probe.attach import attachment, trace_and_probe
from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.attach.attachment import Attachment
from dyn_probe.attach.trainer_kinds import kind_of
from dyn_probe.attach.trl import ProbeCallback


def hooks(trainer: Any) -> int:
    """Of ours on the trainer's optimizer."""
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    both = (*inner._optimizer_step_pre_hooks.values(), *inner._optimizer_step_post_hooks.values())
    return sum("dyn_probe" in getattr(hook, "__module__", "") for hook in both)


def trained(folder: Any, capfd: Any, **probe: Any) -> tuple[Any, str]:
    """A trainer that was told to record, after its training, and what was said."""
    optim = probe.pop("optim", "sgd")
    trainer = runs.trainer_of(folder, callbacks=[ProbeCallback(folder / "run", **probe)], optim=optim)
    trainer.train()
    assert trainer.state.global_step == 2 and hooks(trainer) == 0
    assert not any(name in trainer.__dict__ for name in attachment.THROUGH_US)
    return trainer, capfd.readouterr().err


def test_hooks_of_ours_are_found_while_it_records(tmp_path):
    found = []
    trainer = runs.trainer_of(tmp_path, callbacks=[ProbeCallback(tmp_path / "run", metric="previous")], optim="sgd")
    original = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: (found.append(hooks(trainer)), original(*args, **kwargs))[1]
    trainer.train()
    assert min(found) >= 2


@pytest.mark.parametrize("more", [{}, {"split_momentum": True}, {"metric_every": 0, "gram_every": 0}], ids=str)
def test_an_optimizer_without_a_coming_step_leaves_no_folder(tmp_path, capfd, more):
    trainer, said = trained(tmp_path, capfd, metric="previous", optim="adafactor", **more)
    assert "not recorded, the training continues: metric 'previous' needs an optimizer" in said
    assert "Adafactor" in said and not (tmp_path / "run").exists()
    assert runs.same_weights(trainer, runs.plain(tmp_path, optim="adafactor"))


@pytest.mark.parametrize("where", ["probe", "after it"])
def test_an_error_after_the_opening_closes_the_trace(tmp_path, capfd, monkeypatch, where):
    def broken(*_: Any, **__: Any) -> None:
        raise BadInput("wanted this; got that")

    monkeypatch.setattr(*((trace_and_probe, "Probe") if where == "probe" else (attachment, "LogWindow")), broken)
    _, said = trained(tmp_path, capfd)
    assert "not recorded, the training continues: wanted this; got that" in said
    trace = load_trace(tmp_path / "run")
    assert trace.manifest["status"] == "stopped" and "wanted this" in trace.manifest["reason"]
    assert not list((tmp_path / "run").glob("streams/*"))


def of_two_processes(trainer: Any, monkeypatch: Any) -> Any:
    monkeypatch.setattr(type(trainer.args), "world_size", property(lambda _: 2))
    return trainer


def test_a_split_momentum_of_single_responses_is_for_one_process(tmp_path, monkeypatch):
    """Whichever process meets a response without a partner would leave the others waiting for its sums."""
    trainer = of_two_processes(runs.kto(tmp_path), monkeypatch)
    kind, options = kind_of(trainer), AttachOptions(out=str(tmp_path / "run"), split_momentum=True)
    assert kind is not None
    with pytest.raises(BadInput, match=r"split_momentum .* 2 processes .* KTOTrainer .*leave split_momentum out"):
        Attachment(trainer, kind, options)
    assert not (tmp_path / "run").exists()


def test_of_pairs_it_is_for_any_number(tmp_path, monkeypatch):
    trainer = of_two_processes(runs.trainer_of(tmp_path), monkeypatch)
    kind, options = kind_of(trainer), AttachOptions(split_momentum=True)
    assert kind is not None
    assert attachment.splits_momentum(trainer, kind, options, weighted=False)
