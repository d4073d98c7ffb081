"""Runs that stop before their end, and runs that go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from loop_runs import SMALL, run, small

from dyn_probe.errors import BadInput, Diverged, TraceError
from dyn_probe.trace.reader import load_trace
from dyn_probe.train import loop
from dyn_probe.train.memory import savings
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.options.config_file import make_config

LONG = {"steps": 6, "checkpoint_every": 2, "eval_every": 2}


def stop_at(step: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the loop meets ``error`` in place of ``step``."""
    train_step = loop.train_step

    def stopping(run: Any, now: int) -> str:
        if now == step:
            raise error
        return train_step(run, now)

    monkeypatch.setattr(loop, "train_step", stopping)


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    keys = [column for column in ("step", "pair_id", "side", "depth") if column in frame]
    return frame.drop(columns=["step_seconds", "pushes_seconds"], errors="ignore").sort_values(keys, ignore_index=True)


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (4, {}),
        (5, {"precompute_reference": False}),
        (5, {"lora_rank": 2}),
        (3, {"shaping": ("token-mask",)}),
        (4, {"objective": "simpo"}),
        (5, {"shaping": ("rc",)}),
        (5, {"metric_every": 2, "optimizer": "sgd", "lr": 0.01}),
    ],
    ids=str,
)
def test_a_killed_and_resumed_run_leaves_the_trace_of_an_uninterrupted_one(
    step: int, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", **LONG, **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(step, KeyboardInterrupt(), patch)
        run(tmp_path / "parts", **LONG, **options)
    assert load_trace(tmp_path / "parts").manifest["status"] == "stopped"
    config = make_config(None, {"out": str(tmp_path / "parts"), "resume": True})
    parts = load_trace(loop.record(config, progress=False))
    assert parts.closed and parts.manifest["held_out"] == whole.manifest["held_out"]
    for table in ("pairs", "pushes", "steps", "layers", "examples", "final"):
        pd.testing.assert_frame_equal(comparable(getattr(parts, table)), comparable(getattr(whole, table)))


def test_resuming_without_a_checkpoint_says_how_to_have_one(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(BadInput, match="--checkpoint-every"):
        loop.record(make_config(None, {"out": str(tmp_path / "run"), "resume": True}), progress=False)
    assert load_trace(tmp_path / "run").closed


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_trace(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"not finite at step [1-3] for pairs [0-9a-f]{16}"):
        loop.record(
            small(tmp_path / "run", optimizer="sgd", lr=1e30, warmup_steps=0, max_grad_norm=0.0), progress=False
        )
    trace = load_trace(tmp_path / "run")
    assert trace.manifest["status"] == "stopped" and "not finite" in trace.manifest["reason"]
    assert trace.pairs.query("step == 0").shape[0] == SMALL["batch_size"]


@pytest.mark.parametrize("options", [{"max_grad_norm": 0.0}, {"max_grad_norm": 1.0}, {"eval_fraction": 0.0}])
def test_a_last_update_that_leaves_no_numbers_is_no_success(options: dict[str, float], tmp_path: Path) -> None:
    config = small(tmp_path / "run", **{"optimizer": "sgd", "lr": 1e30, "warmup_steps": 0, "steps": 1, **options})
    with pytest.raises(Diverged, match=r"not finite after the last step, 0.*Lower --lr") as caught:
        loop.record(config, progress=False)
    assert ("--max-grad-norm" in str(caught.value)) == (options.get("max_grad_norm") == 0)
    trace = load_trace(tmp_path / "run")
    assert trace.manifest["status"] == "stopped" and "held_out" not in trace.manifest and len(trace.pairs) == 4


def test_hints_name_only_what_is_not_set_yet() -> None:
    tight = RunConfig(
        batch_size=1, gradient_checkpointing=True, lora_rank=8, dtype="bfloat16", max_length=64, gram_every=0
    )
    assert savings(tight) == "try a smaller model"
    assert "--dtype" not in savings(RunConfig(dtype="bfloat16")) and "--update" in savings(RunConfig(update=True))


def test_ctrl_c_closes_the_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(2, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        loop.record(small(tmp_path / "run"), progress=False)
    trace = load_trace(tmp_path / "run")
    assert trace.manifest["status"] == "stopped" and "KeyboardInterrupt" in trace.manifest["reason"]
    assert sorted(set(trace.pairs["step"])) == [0, 1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("Unable to allocate 3 GiB"),
    ],
)
def test_out_of_memory_names_the_options_that_lower_it(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(1, error, monkeypatch)
    with pytest.raises(BadInput, match="--batch-size") as caught:
        loop.record(small(tmp_path / "run"), progress=False)
    assert "--gradient-checkpointing" in str(caught.value) and len(load_trace(tmp_path / "run").pairs) == 4


def test_an_error_of_its_own_is_not_called_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(1, RuntimeError("something else"), monkeypatch)
    with pytest.raises(RuntimeError, match="something else"):
        loop.record(small(tmp_path / "run"), progress=False)


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    first = run(tmp_path / "run", seed=1)
    with pytest.raises(TraceError, match="--force"):
        run(tmp_path / "run")
    assert load_trace(tmp_path / "run").pairs.equals(first.pairs)
    assert not run(tmp_path / "run", force=True).pairs.equals(first.pairs)


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(TraceError):
        run(tmp_path / "run", force=True)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"
