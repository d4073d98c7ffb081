"""The built-in model's reading stage is done once: the second run takes its weights and is bit for bit the same."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_runs import BARE, run

from dyn_probe.train import kept_tensors, start

pytestmark = pytest.mark.usefixtures("short_reading")

OPTIONS = BARE | dict(pretrain_steps=3, sft_steps=1, steps=1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(kept_tensors.VARIABLE, str(folder))
    return folder


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of every supervised stage that was really trained."""
    seen, honest = [], start.supervised_stage
    monkeypatch.setattr(start, "supervised_stage", lambda *args: (seen.append(args[3]), honest(*args))[1])
    return seen


def same(one: object, other: object) -> None:
    drop = ["step_seconds", "pushes_seconds"]
    for table in ("pairs", "steps"):
        left, right = (getattr(trace, table).drop(columns=drop, errors="ignore") for trace in (one, other))
        pd.testing.assert_frame_equal(left, right, check_exact=True)


def test_the_second_run_reads_what_the_first_kept(tmp_path: Path, cache: Path, stages: list[int]) -> None:
    first = run(tmp_path / "first", **OPTIONS)
    assert stages == [3, 1] and len(list(cache.glob("*.safetensors"))) == 1
    second = run(tmp_path / "second", **OPTIONS)
    assert stages == [3, 1, 1]
    same(first, second)
    assert first.manifest["warmup"] == second.manifest["warmup"]


def test_other_settings_and_other_code_are_done_anew(
    tmp_path: Path, cache: Path, stages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "first", **OPTIONS)
    for number, other in enumerate(({"seed": 1}, {"pretrain_steps": 4}, {"dtype": "float64"}, {"batch_size": 2})):
        run(tmp_path / f"other{number}", **OPTIONS | other)
    assert len(list(cache.glob("*.safetensors"))) == 5
    monkeypatch.setattr(kept_tensors, "sources_digest", lambda: "changed")
    run(tmp_path / "changed", **OPTIONS)
    assert [steps for steps in stages if steps > 1] == [3, 3, 4, 3, 3, 3]


def test_a_damaged_file_is_made_again(tmp_path: Path, cache: Path, stages: list[int]) -> None:
    first = run(tmp_path / "first", **OPTIONS)
    (path,) = cache.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    same(first, run(tmp_path / "second", **OPTIONS))
    assert stages == [3, 1, 3, 1]


def test_nothing_is_kept_where_nothing_may_be(
    tmp_path: Path, stages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kept_tensors.VARIABLE, "")
    run(tmp_path / "first", **OPTIONS)
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv(kept_tensors.VARIABLE, str(blocked))
    run(tmp_path / "second", **OPTIONS)
    assert stages == [3, 1, 3, 1] and blocked.read_text() == "no folder"


def test_the_oldest_files_go(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_tensors, "MOST", 2)
    for number in range(4):
        kept_tensors.keep(f"key{number}", {"x": torch.full((2,), float(number))})
    found = [kept_tensors.kept(f"key{number}") for number in range(4)]
    assert sum(one is not None for one in found) == 2 and found[3] is not None
    assert found[3]["x"].tolist() == [3.0, 3.0]
