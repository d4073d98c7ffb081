"""Models that two processes train together (gloo on the CPU): rank 0 leaves them whole, and others load them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from saved_models import worst_of_final
from tiny_runs import TINY
from two_processes import together

from dyn_probe import load_trace

OPTIONS: dict[str, Any] = {
    **TINY, "lr": 1e-2, "batch_size": 4, "save": True, "checkpoint_every": 1, "keep_checkpoints": 1,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"lora_rank": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, from one launch."""
    folder = tmp_path_factory.mktemp("runs")
    wanted = [
        {**OPTIONS, **own, "parallel": kind, "out": str(folder / f"{name}-{kind}")}
        for name, own in RUNS.items()
        for kind in ("ddp", "fsdp2")
    ]
    (folder / "runs.json").write_text(json.dumps(wanted))
    done = together(str(Path(__file__).parents[1] / "support" / "multiprocess_runs.py"), str(folder / "runs.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(folder.glob("*.error")), [file.read_text() for file in folder.glob("*.error")]
    return folder


def tensors(file: Path) -> list[str]:
    with safe_open(file, "pt") as kept:
        return list(kept.keys())


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", RUNS)
def test_transformers_loads_what_two_processes_trained(name: str, kind: str, folder: Path) -> None:
    out = folder / f"{name}-{kind}"
    trace = load_trace(out)
    assert trace.manifest["processes"] == {"count": 2, "parallel": kind}
    assert abs(trace.pairs.query("step == 1")["realised_delta_chosen"]).max() > 1e-3, "the weights moved"
    files = {file.relative_to(out).as_posix(): tensors(file) for file in out.rglob("*.safetensors")}
    per_model = ["adapter_model.safetensors", "base/model.safetensors"] if name == "lora" else ["model.safetensors"]
    assert set(files) == {f"{place}/{one}" for place in ("model", "checkpoints/checkpoint-2") for one in per_model}
    assert not any("lm_head" in one for names in files.values() for one in names), "a tied head is saved once"
    for place in ("model", "checkpoints/checkpoint-2"):
        assert worst_of_final(trace, out / place) < 1e-6
