"""Models by name: built-in, local folders, LoRA, and what cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dyn_probe.data.built_in import built_in_model, built_in_tokenizer
from dyn_probe.data.models import load_model, load_tokenizer
from dyn_probe.errors import BadInput


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as save_pretrained leaves it, with dropout on."""
    folder = tmp_path_factory.mktemp("model")
    model = built_in_model(3)
    model.config.attn_pdrop = model.config.resid_pdrop = 0.3
    model.save_pretrained(folder)
    built_in_tokenizer().save_pretrained(folder)
    return folder


def refusal(name: str, **options: object) -> str:
    with pytest.raises(BadInput) as caught:
        load_model(name, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_built_in_model_is_a_function_of_its_seed_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = built_in_model(0), built_in_model(0), built_in_model(1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights(first), weights(again)) and not torch.equal(weights(first), weights(other))


def test_the_built_in_model_is_a_tied_gpt2_without_dropout() -> None:
    model, tokenizer = load_model("built-in")
    assert model.lm_head.weight is model.transformer.wte.weight and model.training
    assert all(m.p == 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))
    assert None not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bfloat16", torch.bfloat16), ("float64", torch.float64), ("autocast", torch.float32)]
)
def test_dtypes(dtype: str, expected: torch.dtype) -> None:
    model, _ = load_model("built-in", dtype=dtype, device="cpu")
    assert {p.dtype for p in model.parameters()} == {expected}


def test_a_local_folder_loads_with_dropout_off(saved: Path) -> None:
    model, tokenizer = load_model(str(saved))
    assert torch.equal(weights(model), weights(built_in_model(3)))
    assert all(m.p == 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))
    assert tokenizer("Sky").input_ids == built_in_tokenizer()("Sky").input_ids


def test_lora_trains_adapters_alone_and_from_its_seed(saved: Path) -> None:
    model, _ = load_model(str(saved), lora_rank=2)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert torch.equal(weights(model), weights(load_model(str(saved), lora_rank=2)[0]))
    assert not torch.equal(weights(model), weights(load_model(str(saved), lora_rank=2, seed=1)[0]))


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert "no config.json" in refusal(str(tmp_path))


def test_a_folder_that_is_not_there() -> None:
    assert "no such model folder: './nothing'" in refusal("./nothing")
    assert "no such model folder" in refusal("a/b/c")


def test_a_hub_id_that_cannot_be_reached() -> None:
    said = refusal("nobody/no-such-model-here")
    assert "neither a folder or file here nor a model in the hub's local cache" in said and "HF_HUB_OFFLINE" in said
    assert "wanted built-in, a path, or a hub id" in said
    with pytest.raises(BadInput, match="hub's local cache"):
        load_tokenizer("nobody/no-such-model-here")


def test_a_tokenizer_loads_alone_with_the_models_positions(saved: Path) -> None:
    for name in (str(saved), "built-in"):
        tokenizer, positions = load_tokenizer(name)
        assert positions == 1024 and tokenizer("Sky").input_ids == built_in_tokenizer()("Sky").input_ids


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    built_in_model().save_pretrained(tmp_path)
    assert "save one beside it" in refusal(str(tmp_path))


def test_a_tokenizer_larger_than_the_embedding(saved: Path, tmp_path: Path) -> None:
    built_in_model().save_pretrained(tmp_path)
    tokenizer = built_in_tokenizer()
    tokenizer.add_tokens([f"extra{i}" for i in range(10)])
    tokenizer.save_pretrained(tmp_path)
    assert "highest token id is 1033" in refusal(str(tmp_path))


def test_devices_and_dtypes_that_do_not_exist() -> None:
    assert "cannot use device 'abacus'" in refusal("built-in", device="abacus")
    assert "float32, float64, bfloat16, autocast" in refusal("built-in", dtype="float31")
