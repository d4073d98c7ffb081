"""A training that goes on from a checkpoint: one trace with both parts, or a folder beside the trace of another."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs trl")
import attach_runs as runs

from dyn_probe import load_trace
from dyn_probe.attach import trace_folder
from dyn_probe.attach.trl import ProbeCallback
from dyn_probe.report.build import build_report
from dyn_probe.trace.writer import TraceWriter

SAVING = dict(max_steps=6, save_strategy="steps", save_steps=2)


def started(folder: Path, **options: Any) -> Any:
    """A trainer that saves checkpoints, with the recorder on."""
    callback = ProbeCallback(folder / "run", gram_every=1, metric_every=1, realised_every=1)
    return runs.trainer_of(folder, callbacks=[callback], **{**SAVING, **options})


def killed_in(step: int, folder: Path) -> None:
    """Train in another process, which vanishes in this step without leaving Python. Rows reach the disk only where
    something asks for it."""
    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        return
    try:
        trace_folder.TraceWriter = partial(TraceWriter, flush_seconds=1e6, flush_rows=10**6)
        trainer = started(folder)
        original = trainer._compute_loss

        def vanish(*args: Any) -> Any:
            if trainer.state.global_step == step:
                os._exit(9)
            return original(*args)

        trainer._compute_loss = vanish
        trainer.train()
    finally:
        os._exit(1)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The trainer that went on, and its folder."""
    folder = tmp_path_factory.mktemp("segments")
    killed_in(5, folder)
    assert load_trace(folder / "run").manifest["status"] == "recording"
    trainer = started(folder)
    trainer.train(resume_from_checkpoint=True)
    return trainer, folder


@pytest.mark.usefixtures("unrendered")
def test_a_killed_training_goes_on_in_the_same_trace(resumed, tmp_path):
    _, folder = resumed
    trace = load_trace(folder / "run")
    assert trace.closed and [(one.segment, one.step) for one in trace.about.resumes] == [(1, 4)]
    assert not (folder / "run-2").exists()
    assert list(trace.pairs["step"]) == [step for step in range(6) for _ in range(2)]
    assert list(trace.steps["step"]) == list(range(6)) and len(trace.pushes) == 24
    assert trace.examples["pair_id"].is_unique and set(trace.examples["pair_id"]) == set(trace.pairs["pair_id"])
    report = build_report([folder / "run"], out=tmp_path / "report")
    assert "the film was" in report.read_text(encoding="utf-8")


def test_its_rows_are_those_of_a_training_without_a_break(resumed, tmp_path):
    trainer, folder = resumed
    whole = started(tmp_path)
    whole.train()
    assert runs.same_weights(trainer, whole)
    found, expected = (load_trace(one / "run").pairs for one in (folder, tmp_path))
    assert list(found["pair_id"]) == list(expected["pair_id"])
    for name in ("logp_chosen", "ref_logp_rejected", "grad_inner", "pull_chosen", "realised_delta_chosen"):
        assert np.allclose(found[name], expected[name], rtol=1e-5), name


def test_the_end_is_measured_anew(tmp_path):
    for steps in (2, 4):
        trainer = started(tmp_path, max_steps=steps)
        trainer.train(resume_from_checkpoint=steps > 2)
    trace = load_trace(tmp_path / "run")
    first = set(trace.pairs[trace.pairs["step"] < 2]["pair_id"]) - set(trace.pairs[trace.pairs["step"] >= 2]["pair_id"])
    assert trace.final["pair_id"].is_unique and set(trace.final["pair_id"]) == set(trace.pairs["pair_id"])
    old = trace.final["pair_id"].isin(first)
    assert trace.final[old]["logp_chosen"].isna().all() and trace.final[~old]["logp_chosen"].notna().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [(dict(beta=0.3), "of another objective (hyper"), (dict(model="gpt2"), "of another model (type: llama, now gpt2)")],
)
def test_another_training_gets_a_folder_beside_it(tmp_path, capfd, monkeypatch, options, words):
    started(tmp_path, max_steps=2).train()
    other = started(tmp_path, **{"max_steps": 4, **options})
    monkeypatch.setattr(other, "_load_from_checkpoint", lambda *_, **__: None)
    monkeypatch.setattr(other, "_load_optimizer_and_scheduler", lambda *_, **__: None)
    other.train(resume_from_checkpoint=True)
    said = capfd.readouterr().err
    assert words in said and f"recording into {tmp_path / 'run-2'}" in said
    assert set(load_trace(tmp_path / "run").pairs["step"]) == {0, 1}
    assert set(load_trace(tmp_path / "run-2").pairs["step"]) == {2, 3}


def test_other_data_are_another_training(tmp_path, capfd, monkeypatch):
    started(tmp_path, max_steps=2).train()
    whole = runs.pairs
    monkeypatch.setattr(runs, "pairs", lambda: whole(8).select(range(7, -1, -1)).select(range(8)))
    started(tmp_path, max_steps=4).train(resume_from_checkpoint=True)
    assert "of other data (digest" in capfd.readouterr().err and (tmp_path / "run-2").is_dir()
