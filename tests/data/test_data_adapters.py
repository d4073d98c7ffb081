"""Folders of adapters as models: their base is found, or what is missing is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dyn_probe.data.built_in import built_in_model, built_in_tokenizer
from dyn_probe.data.model_folders import adapter_base, checkpoints_in, is_adapter, save_model, training_step
from dyn_probe.data.models import add_lora, load_model, load_tokenizer
from dyn_probe.errors import BadInput
from dyn_probe.train.options.config import BY_MODEL, RunConfig


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A full model whose configuration has dropout."""
    model = built_in_model(3)
    model.config.attn_pdrop = 0.3
    model.save_pretrained(tmp_path / "base-model")
    built_in_tokenizer().save_pretrained(tmp_path / "base-model")
    return tmp_path / "base-model"


@pytest.fixture
def adapters(base: Path, tmp_path: Path) -> Path:
    """Adapters of peft on it, with dropout, weights drawn at random, and no tokenizer."""
    model: Any = add_lora(load_model(str(base), device="cpu")[0], 2, 0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(name)))
    model.peft_config["default"].lora_dropout = 0.3
    model.save_pretrained(tmp_path / "adapters")
    return tmp_path / "adapters"


def rewrite(folder: Path, **told: Any) -> None:
    """Change what the folder's adapter_config.json says."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(BadInput) as caught:
        load_model(str(folder), device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_adapters_of_peft_load_on_their_base_and_are_what_is_trained(adapters: Path, base: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    state = torch.get_rng_state()
    model, tokenizer = load_model(str(adapters), device="cpu")
    assert torch.equal(state, torch.get_rng_state())
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained and all("lora_" in name for name in trained) and model.training
    assert all(m.p == 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))
    ids = torch.tensor([tokenizer("The sky is blue").input_ids])
    with torch.no_grad():
        own, peft = model(ids).logits, AutoPeftModelForCausalLM.from_pretrained(adapters).eval()(ids).logits
        assert torch.equal(own, peft) and not torch.allclose(own, load_model(str(base), device="cpu")[0](ids).logits)
    assert load_tokenizer(str(adapters))[0].get_vocab() == tokenizer.get_vocab()


def test_defaults_are_those_of_adapters(adapters: Path, base: Path) -> None:
    rates = [RunConfig(model=str(one)).with_model_defaults().lr for one in (adapters, base)]
    assert rates == [BY_MODEL["lr"][1], BY_MODEL["lr"][2]]


def test_a_base_that_is_not_there(adapters: Path) -> None:
    rewrite(adapters, base_model_name_or_path="/gone/model")
    with pytest.raises(BadInput) as caught:
        load_tokenizer(str(adapters))
    for said in (refusal(adapters), str(caught.value)):
        assert "needs its base model '/gone/model', which is not a folder here" in said
        assert "base_model_name_or_path" in said and str(adapters / "adapter_config.json") in said


def test_a_base_on_a_hub_that_cannot_be_reached(adapters: Path) -> None:
    rewrite(adapters, base_model_name_or_path="nobody/no-such-model-here")
    assert f"the adapter folder {adapters} needs its base model: --model 'nobody/no-such" in refusal(adapters)


@pytest.mark.parametrize("told", [None, "", 3])
def test_a_base_that_is_not_named(told: Any, adapters: Path) -> None:
    rewrite(adapters, base_model_name_or_path=told)
    assert "does not say which model its adapters belong to; write that model's folder or hub id" in refusal(adapters)


def test_what_cannot_be_read(adapters: Path, base: Path) -> None:
    assert "--lora-rank 2 asks for new ones; leave out --lora-rank, or name the base model: --model" in refusal(
        adapters, lora_rank=2
    )
    rewrite(adapters, base_model_name_or_path=str(adapters))
    assert "names adapters as its base model" in refusal(adapters)
    rewrite(adapters, base_model_name_or_path=str(base), r=5)
    assert "cannot put the adapters of" in refusal(adapters)
    (adapters / "adapter_config.json").write_text("{")
    assert "cannot read" in refusal(adapters) and "wanted that of peft" in refusal(adapters)


def test_without_peft_it_is_said_what_to_install(adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'dyn-probe[peft]'" in refusal(adapters)


def test_a_relative_base_is_found_beside_the_command_or_within_the_folder(
    adapters: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(adapters, base_model_name_or_path="base-model")
    monkeypatch.chdir(base.parent)
    assert Path(adapter_base(adapters)).resolve() == base
    monkeypatch.chdir("/")
    assert adapter_base(adapters) == "base-model", "else it is an id of the hub"
    base.rename(adapters / "base-model")
    assert Path(adapter_base(adapters)) == adapters / "base-model"


def test_saved_again_a_relative_base_becomes_absolute(
    adapters: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    rewrite(adapters, base_model_name_or_path="base-model")
    model, tokenizer = load_model(str(adapters), device="cpu")
    save_model(base.parent / "again", 7, model, tokenizer)
    told = json.loads((base.parent / "again" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str(base) and is_adapter(base.parent / "again")


def test_steps_are_read_off_the_state_or_the_name(tmp_path: Path) -> None:
    def folder(name: str, state: str | None = None) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
        return tmp_path / name

    assert training_step(folder("checkpoint-20")) == (20, "name")
    assert training_step(folder("checkpoint-9", '{"global_step": 12}')) == (12, "trainer_state.json")
    assert training_step(folder("checkpoint-100", "{")) == (100, "name")
    assert training_step(folder("other", '{"global_step": "many"}')) is None
    (tmp_path / "checkpoint-7").mkdir()
    assert [one.name for one in checkpoints_in(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert checkpoints_in(tmp_path / "nowhere") == []


def test_a_model_that_cannot_be_written_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    model, tokenizer = load_model("built-in", device="cpu")
    save_model(tmp_path / "model", 1, model, tokenizer)

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(type(model), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_model(tmp_path / "model", 2, model, tokenizer)
    assert [one.name for one in tmp_path.iterdir()] == ["model"] and training_step(tmp_path / "model") == (
        1, "trainer_state.json",
    )  # fmt: skip
