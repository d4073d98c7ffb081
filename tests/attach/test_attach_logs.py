"""The trainer's logs: ours are in them for every reporter, and its own are held to the recorded rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs trl")
import attach_runs as runs
from transformers import TrainerCallback

from dyn_probe import load_trace
from dyn_probe.attach.live_numbers import live_numbers
from dyn_probe.attach.log_window import LogWindow
from dyn_probe.attach.micro_step import MicroStep
from dyn_probe.attach.recheck import KEYS, Logged, difference
from dyn_probe.attach.trainer_kinds import KINDS
from dyn_probe.attach.trl import ProbeCallback


class Reporter(TrainerCallback):
    """Keeps what a reporter would send away."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.logs.append(dict(logs or {}))


def test_reporters_get_our_numbers_before_they_send(tmp_path):
    reporter = Reporter()
    callback = ProbeCallback(tmp_path / "run", update=True)
    runs.trainer_of(
        tmp_path, callbacks=[reporter, callback], eval_dataset=runs.pairs(4), eval_strategy="steps", eval_steps=1
    ).train()
    trace = load_trace(tmp_path / "run")
    trained = [logs for logs in reporter.logs if "loss" in logs]
    for step, logs in enumerate(trained):
        rows = trace.pairs[trace.pairs["step"] == step]
        assert np.isclose(logs["dyn/grad_cosine"], rows["grad_cosine"].median())
        assert np.isclose(logs["dyn/delta_chosen"], rows["update_delta_chosen"].median())
        assert sum(logs[f"dyn/case_{case}"] for case in (1, 2, 3, 4)) == 1
    assert not any(name.startswith("dyn/") for logs in reporter.logs if "eval_loss" in logs for name in logs)
    assert 9 <= sum(name.startswith("dyn/") for name in trained[0]) <= 15


@pytest.mark.parametrize("options", [dict(), dict(gradient_accumulation_steps=2), dict(loss_type=["sigmoid", "sft"])])
def test_a_good_recording_agrees_with_the_trainer(tmp_path, capfd, options):
    runs.recorded(tmp_path, logging_steps=2, **options)
    assert "by the recorded rows" not in capfd.readouterr().err
    assert "recheck" not in load_trace(tmp_path / "run").manifest


def test_a_wrong_reference_is_found_and_said_once(tmp_path, capfd, monkeypatch):
    real = MicroStep._fitting

    def wrong(self: MicroStep, tokens: Any) -> Any:
        tokens = real(self, tokens)
        return tokens if tokens.requires_grad else tokens + 0.1

    monkeypatch.setattr(MicroStep, "_fitting", wrong)
    runs.recorded(tmp_path)
    said = capfd.readouterr().err
    assert said.count("by the recorded rows") == 1 and "rewards/chosen is " in said and "another reference" in said
    assert "rewards/chosen" in load_trace(tmp_path / "run").manifest["recheck"]


@pytest.mark.parametrize("wrong", [0.0, 0.5])
def test_logs_of_several_processes_are_held_to_all_rows(tmp_path, capfd, wrong):
    """Rows of a closed trace, and logs as a trainer of two processes writes them."""
    trainer = runs.recorded(tmp_path)
    trace = load_trace(tmp_path / "run")
    trainer.args = SimpleNamespace(world_size=2, process_index=0, beta=0.2, loss_type=["sigmoid"])
    trainer.accelerator = SimpleNamespace(gradient_state=SimpleNamespace(end_of_dataloader=False))
    window = LogWindow(trainer, KINDS["DPOTrainer"], SimpleNamespace(path=trace.path), True)
    for step in (0, 1):
        rows = trace.pairs[trace.pairs["step"] == step].to_dict("records")
        window.add(step, rows[:1], [1], 1)
        means = {f"logps/{side}": np.mean([row[f"logp_{side}"] for row in rows]) for side in ("chosen", "rejected")}
        window.log(
            {"loss": np.mean([row["loss"] for row in rows]), **means, "logps/rejected": means["logps/rejected"] + wrong}
        )
    assert "recheck" not in trace.manifest
    window.check_all_processes()
    said = capfd.readouterr().err
    assert said.count("step 0: logps/rejected is") == int(wrong > 0) == said.count("by the recorded rows")
    assert ("recheck" in load_trace(tmp_path / "run").manifest) == (wrong > 0)


@pytest.mark.parametrize("logged", [Logged(0.5), Logged(0.5, means=True, reference=False)])
@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_held_to_the_rows(key, logged):
    rows = [
        dict(logp_chosen=-3.0, logp_rejected=-5.0, ref_logp_chosen=-4.0, ref_logp_rejected=-4.5, loss=0.6),
        dict(logp_chosen=-1.0, logp_rejected=-2.0, ref_logp_chosen=-1.5, ref_logp_rejected=-1.0, loss=0.8),
    ]
    for row, lengths in zip(rows, ((2, 5), (4, 3)), strict=True):
        row |= dict(len_chosen=lengths[0], len_rejected=lengths[1])
    value_of, why = KEYS[key]
    mean = float(np.mean([value_of(row, logged) for row in rows]))
    assert difference([rows[:1], rows[1:]], {key: mean}, logged) == ""
    said = difference([rows[:1], rows[1:]], {key: mean + 0.1}, logged)
    assert key in said and why in said


def test_rewards_of_another_form_are_not_held_to_the_rows():
    rows = [dict(logp_chosen=-3.0, logp_rejected=-5.0, len_chosen=2, len_rejected=5, loss=0.6)]
    assert difference([rows], {"rewards/chosen": 7.0}, Logged(None, means=True, reference=False)) == ""
    assert "logps/chosen" in difference([rows], {"logps/chosen": -3.0}, Logged(None, means=True, reference=False))


def test_what_was_not_recorded_is_left_out():
    rows = [dict(grad_cosine=0.5, case_plain=2), dict(grad_cosine=None, case_plain=1)]
    assert live_numbers(rows) == {
        "dyn/grad_cosine": 0.5, "dyn/case_1": 0.5, "dyn/case_2": 0.5, "dyn/case_3": 0.0, "dyn/case_4": 0.0,
    }  # fmt: skip
