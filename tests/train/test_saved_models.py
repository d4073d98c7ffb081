"""Models that a run leaves: others load them, and they are the trained ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import encoded, load_plainly, row_logp, worst_of_final
from tiny_runs import run, tiny

from dyn_probe.data.model_folders import checkpoints_in, training_step
from dyn_probe.data.models import load_model
from dyn_probe.errors import BadInput, TraceError
from dyn_probe.train import loop
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.options.config_file import make_config
from dyn_probe.train.setup import prepare

KINDS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"lora_rank": 2}}
STRONG = {"lr": 1e-2, "steps": 4}
"""Enough for every kind to leave the weights that it began with."""


@pytest.fixture(scope="module", params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of each kind that leaves its model and all its checkpoints."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    return run(out, **STRONG, **KINDS[request.param], save=True, checkpoint_every=2, keep_checkpoints="all")


def logps(model: Any, pairs: list[Any]) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([row_logp(model.eval(), pair.chosen) for pair in pairs])


def test_transformers_loads_the_trained_model(saved: Any) -> None:
    assert worst_of_final(saved, saved.path / "model") < 1e-6
    earlier = saved.path / "checkpoints" / "checkpoint-2"
    assert worst_of_final(saved, earlier) > 1e-3, "other weights are seen"


def test_model_loads_the_same_and_so_does_the_last_checkpoint(saved: Any) -> None:
    plain, tokenizer = load_plainly(saved.path / "model")
    pairs = encoded(tokenizer, "sentiment:long-suffix", 3)
    for folder in (saved.path / "model", saved.path / "checkpoints" / "checkpoint-4"):
        model, own = load_model(str(folder), device="cpu")
        assert torch.equal(logps(model, pairs), logps(plain, pairs))
        assert own.get_vocab() == tokenizer.get_vocab()


def test_a_folder_holds_what_the_layout_asks_for(saved: Any) -> None:
    names = {file.name for file in (saved.path / "model").iterdir()}
    adapters = {"adapter_config.json", "adapter_model.safetensors", "base"}
    assert {"tokenizer.json", "tokenizer_config.json", "trainer_state.json"} <= names
    whole = {"config.json", "generation_config.json", "model.safetensors"}
    assert (adapters <= names and not whole & names) if "base" in names else whole <= names
    assert training_step(saved.path / "model") == (4, "trainer_state.json")


def test_the_resume_state_stays_beside_the_models(saved: Any) -> None:
    assert sorted(one.name for one in (saved.path / "checkpoints").iterdir()) == [
        "checkpoint-2", "checkpoint-4", "step-4.pt",
    ]  # fmt: skip


def test_training_goes_on_from_a_saved_model(saved: Any, tmp_path: Path) -> None:
    again = run(tmp_path / "again", model=str(saved.path / "model"), save=True, steps=1)
    first = saved.final.set_index("pair_id")["logp_chosen"]
    for row in again.pairs.itertuples():
        assert row.logp_chosen == pytest.approx(first[row.pair_id], rel=1e-5)
    assert worst_of_final(again, tmp_path / "again" / "model") < 1e-6
    trained = saved.manifest["model"]["trained_parameters"]
    assert again.manifest["model"]["trained_parameters"] == trained


def test_a_run_that_was_moved_still_loads(saved: Any, tmp_path: Path) -> None:
    plain, tokenizer = load_plainly(saved.path / "model")
    pairs = encoded(tokenizer, "sentiment:long-suffix", 3)
    moved = shutil.copytree(saved.path / "model", tmp_path / "elsewhere")
    if (moved / "adapter_config.json").exists():
        told = json.loads((moved / "adapter_config.json").read_text())
        told["base_model_name_or_path"] = str(tmp_path / "gone" / "base")
        (moved / "adapter_config.json").write_text(json.dumps(told))
    assert torch.equal(logps(load_model(str(moved), device="cpu")[0], pairs), logps(plain, pairs))


@pytest.mark.parametrize(("keep", "left"), [(0, []), (1, [5]), (2, [4, 5]), ("all", [1, 2, 3, 4, 5])])
def test_the_newest_are_kept(keep: int | str, left: list[int], tmp_path: Path) -> None:
    run(tmp_path / "run", steps=5, max_pairs=6, checkpoint_every=1, keep_checkpoints=keep)
    folder = tmp_path / "run" / "checkpoints"
    assert [training_step(one) for one in checkpoints_in(folder)] == [(n, "trainer_state.json") for n in left]
    assert [one.name for one in folder.glob("*.pt")] == ["step-5.pt"]


def test_a_resumed_run_leaves_the_models_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"steps": 4, "checkpoint_every": 1, "keep_checkpoints": 2, "save": True}
    run(tmp_path / "whole", **options)
    real = loop.train_step

    def stopping(one: Any, step: int) -> str:
        if step == 3:
            raise KeyboardInterrupt
        return real(one, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_step", stopping)
        run(tmp_path / "parts", **options)
    assert not (tmp_path / "parts" / "model").exists()
    loop.record(make_config(None, {"out": str(tmp_path / "parts"), "resume": True}), progress=False)
    for folder in ("model", "checkpoints/checkpoint-3", "checkpoints/checkpoint-4"):
        one, other = (load_plainly(tmp_path / where / folder)[0].state_dict() for where in ("whole", "parts"))
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert len(checkpoints_in(tmp_path / "parts" / "checkpoints")) == 2


def test_saving_may_begin_with_a_resume(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=3, checkpoint_every=2)
    given = {"out": str(tmp_path / "run"), "resume": True, "save": True, "checkpoint_every": 3, "keep_checkpoints": 1}
    loop.record(make_config(None, given), progress=False)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert [one.name for one in checkpoints_in(tmp_path / "run" / "checkpoints")] == ["checkpoint-3"]


def test_force_leaves_no_model_of_the_run_that_it_replaces(tmp_path: Path) -> None:
    run(tmp_path / "run", save=True, checkpoint_every=1, keep_checkpoints="all")
    with pytest.raises(BadInput, match=r"--force replaces the run .* and with it the model"):
        run(tmp_path / "run", model=str(tmp_path / "run" / "model"), force=True)
    with pytest.raises(TraceError, match="--force"):
        run(tmp_path / "run")
    run(tmp_path / "run", force=True)
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_called_model_that_holds_none_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path / "run")
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / "thesis.tex").write_text("years of work")
    run(tmp_path / "run", force=True)
    assert (tmp_path / "run" / "model" / "thesis.tex").read_text() == "years of work"


def test_what_contradicts_itself_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--keep-checkpoints 2 keeps .* write e\.g\. --checkpoint-every 20"):
        prepare(tiny(tmp_path / "run", keep_checkpoints=2))
    for wrong in ("some", -1, 1.5, True, "2 of them", "al"):
        with pytest.raises(BadInput, match=r"keep-checkpoints must be a whole number of at least 0 or all; got"):
            RunConfig(keep_checkpoints=wrong)  # type: ignore[arg-type]
    assert RunConfig(keep_checkpoints="3").keeps == 3 and RunConfig(keep_checkpoints="all").keeps is None
    assert not (tmp_path / "run").exists()


def test_the_tokenizers_own_limit_is_saved(saved: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(saved.path / "model", tmp_path / "limited")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"model_max_length": 77}))
    run(tmp_path / "run", model=str(folder), save=True, steps=1)
    left = json.loads((tmp_path / "run" / "model" / "tokenizer_config.json").read_text())
    assert left["model_max_length"] == 77
