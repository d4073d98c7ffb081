"""An attached training of few parameters has a fix table: all chosen and all rejected pushes are recorded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs trl")
pytest.importorskip("peft", reason="needs peft")
import attach_runs as runs
import peft
import torch
from datasets import Dataset
from typer.testing import CliRunner

from dyn_probe import load_trace
from dyn_probe.attach import trace_folder
from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.attach.trainer_facts import splits_momentum
from dyn_probe.attach.trainer_kinds import KINDS, dpo_name
from dyn_probe.errors import TraceError
from dyn_probe.report.first_screen.fix_table import estimates, fix_table, recorded
from dyn_probe.report.first_screen.fix_texts import fixes
from dyn_probe.report.replay.kernels import kernels
from dyn_probe.trace.reader import Trace

ALIKE = Dataset.from_list(
    [
        {"prompt": f"Review {i}:", "chosen": " " + " ".join(said), "rejected": " " + " ".join([*said[::-1], *said] * 2)}
        for i, said in enumerate((runs.WORDS * 2)[i : i + 3] for i in range(8))
    ]
)
"""Rejected holds every word of chosen four times: what lowers it lowers chosen too."""
LORA = dict(max_steps=6, gradient_accumulation_steps=2, learning_rate=2e-2, num_train_epochs=3)


def lora() -> Any:
    """Adapters in the attention of the tiny Llama."""
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA training of which every second step is recorded, without an option for it."""
    folder = tmp_path_factory.mktemp("adapted")
    probe = dict(every=2, metric_every=2, gram_every=0, update=False, realised_every=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "pairs", lambda: ALIKE)
        trainer = runs.recorded(folder, probe=probe, peft_config=lora(), **LORA)
        assert runs.same_weights(trainer, runs.plain(folder, peft_config=lora(), **LORA))
    return folder / "run"


def whole(trace: Trace) -> None:
    """What all chosen and all rejected gradients moved, over all steps, is what own pair, other pairs and the past
    moved: steps in between that were not followed would be missing."""
    pushes = trace.pushes
    parts = pushes[["own_chosen", "own_rejected", "others", "past"]].sum(axis=1)
    found = pushes["all_chosen"] + pushes["all_rejected"]
    assert found.notna().all() and np.allclose(found, parts, rtol=1e-3, atol=1e-5 * float(parts.abs().max()))


def test_few_trained_parameters_are_split_by_default(adapted: Path) -> None:
    trace = load_trace(adapted)
    assert trace.manifest["status"] == "closed" and "reason" not in trace.manifest.get("pushes", {})
    assert sorted(set(trace.pairs["step"])) == [0, 2, 4] and len(trace.pushes) == 2 * len(trace.pairs)
    assert len(trace.examples) <= len(trace.pairs) == 12
    whole(trace)


def test_such_a_run_has_a_fix_table_and_try_prints_the_settings(adapted: Path) -> None:
    from dyn_probe_cli.app import app

    rows = fix_table(load_trace(adapted))
    assert rows
    printed = CliRunner().invoke(app, ["try", str(adapted), "--top", "20"]).output
    assert "DPOConfig(learning_rate=0.01)" in printed and len(printed.splitlines()) == len(rows)


def trainer(trained: int, processes: int = 1) -> Any:
    """Stands for a trainer of 1000 parameters."""
    model = torch.nn.Module()
    model.a, model.b = (torch.nn.Parameter(torch.zeros(n)) for n in (trained, 1000 - trained))
    model.b.requires_grad_(False)
    accelerator = SimpleNamespace(unwrap_model=lambda given: given)
    return SimpleNamespace(model=model, accelerator=accelerator, args=SimpleNamespace(world_size=processes))


@pytest.mark.parametrize(
    ("made", "options", "weighted", "expected"),
    [
        (trainer(10), {}, False, True),
        (trainer(900), {}, False, False),
        (trainer(900), {"split_momentum": True}, False, True),
        (trainer(10), {"split_momentum": False}, False, False),
        (trainer(10), {"metric_every": 0}, False, False),
        (trainer(10), {}, True, False),
        (trainer(10, processes=2), {}, False, False),
    ],
)
def test_when_chosen_are_kept_apart_from_rejected(
    made: Any, options: dict[str, Any], weighted: bool, expected: bool
) -> None:
    kind = KINDS["DPOTrainer"]
    assert splits_momentum(made, kind, AttachOptions(**options), weighted) is expected


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (dict(loss_type=["sigmoid"], f_divergence_type="reverse_kl"), "dpo"),
        (dict(loss_type="sigmoid"), "dpo"),
        (dict(loss_type=["sigmoid"], f_divergence_type="js_divergence"), "sigmoid (js_divergence)"),
        (dict(loss_type=["ipo"], ld_alpha=0.5), "ipo (ld_alpha=0.5)"),
        (dict(loss_type=["sigmoid"], use_weighting=True), "sigmoid (use_weighting)"),
        (dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5], use_weighting=True),
         "sigmoid + 0.5 sft (use_weighting)"),
    ],
)  # fmt: skip
def test_an_objective_of_ours_is_named_only_where_its_pulls_are_the_same(settings: dict[str, Any], name: str) -> None:
    assert dpo_name(SimpleNamespace(**settings)) == name


def test_pulls_of_another_divergence_are_not_taken_from_dpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**LORA, "gradient_accumulation_steps": 1, "max_steps": 3, "f_divergence_type": "js_divergence"}
    monkeypatch.setattr(runs, "pairs", lambda: ALIKE)
    runs.recorded(tmp_path, probe=dict(metric_every=1), peft_config=lora(), **options)
    trace = load_trace(tmp_path / "run")
    known = kernels(trace)
    assert trace.about.objective.name == "sigmoid (js_divergence)" and known is not None
    assert recorded(trace, known).method.objective is None
    said = "no closed form of the pulls of sigmoid (js_divergence)"
    assert said in fixes(trace)["rule"] and estimates(trace)


def test_any_error_of_the_first_process_reaches_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it opens the folder: they wait for what it tells them, and would wait for ever."""
    told: list[Any] = []

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(trace_folder, "_open", full)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda sent, src: told.extend(sent))
    with pytest.raises(TraceError, match=r"cannot record into .*run: no space left"):
        trace_folder.open_trace(AttachOptions(out=str(tmp_path / "run")), {}, 0, 0)
    assert isinstance(told[0], TraceError)
