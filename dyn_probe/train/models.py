"""Models and tokenizers by name: built-in, from a local folder, or from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dyn_probe.errors import BadInput
from dyn_probe.mass.tokens import check_vocabulary
from dyn_probe.train.builtin import BUILT_IN, built_in_model, built_in_tokenizer
from dyn_probe.train.choices import unknown

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "autocast": torch.float32,
}
"""Name → type of the weights; ``autocast`` computes in bfloat16 over float32 weights."""


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 0,
    lora_rank: int = 0,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Model and tokenizer, ready to train: on its device, dropout off, LoRA adapters added if asked for.

    Args:
        name: ``built-in``, a local folder, or a hub id.
        dtype: a name of DTYPES.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, …
        seed: draws the weights of the built-in model and of the adapters.
        lora_rank: rank of LoRA adapters on every linear layer; 0 trains all weights.
        trust_remote_code: run code that comes with the model.

    Raises:
        BadInput: a name is unknown, the model or its tokenizer cannot be loaded, or the two do not match.
    """
    if dtype not in DTYPES:
        raise BadInput(unknown("dtype", dtype, DTYPES))
    place = pick_device(device)
    if name == BUILT_IN:
        model: Any = built_in_model(seed)
        model, tokenizer = model.to(DTYPES[dtype]), built_in_tokenizer()
    else:
        model, tokenizer = _pretrained(name, DTYPES[dtype], trust_remote_code)
    tokenizer.model_max_length = int(1e9)  # our own max_length applies, with its own message
    check_vocabulary(tokenizer, model)
    if lora_rank:
        model = add_lora(model, lora_rank, seed)
    return model.to(place).train(), tokenizer


def pick_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is a CUDA GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # torch raises several unrelated types for a device that is not there
        first = str(error).strip().splitlines()[0]
        raise BadInput(f"cannot use device {name!r}: {first}; write auto, cpu or cuda") from error
    return device


def pad_token(tokenizer: Any) -> int:
    """An id to pad with. Masks hide it, so any will do."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def add_lora(model: nn.Module, rank: int, seed: int) -> nn.Module:
    """The model with LoRA adapters on every linear layer, only these trained; the random state is left alone."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise BadInput("--lora-rank needs peft; write: pip install 'dyn-probe[peft]'") from None
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)  # type: ignore[arg-type]


def _pretrained(name: str, dtype: torch.dtype, trust_remote_code: bool) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or hub id."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    _check_place(name)
    options = {"trust_remote_code": trust_remote_code}
    try:
        config = without_dropout(AutoConfig.from_pretrained(name, **options))
        model = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=dtype, **options)
    except Exception as error:  # transformers and the hub raise a dozen unrelated types here
        raise BadInput(
            f"cannot load model {name!r}: {_first_line(error)}; wanted {BUILT_IN}, a folder with a model, or a hub id"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what some classes make up where there is no file
            raise OSError("no tokenizer files")
    except Exception as error:
        raise BadInput(
            f"model {name!r} has no tokenizer that loads: {_first_line(error)}; save one beside it: "
            f"tokenizer.save_pretrained({name!r})"
        ) from error
    return model, tokenizer


def without_dropout(config: Any) -> Any:
    """The configuration with every dropout rate at 0: dropout would make log-probabilities those of random models."""
    for key, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in key or key.endswith("pdrop")):
            setattr(config, key, 0.0)
    return config


def _check_place(name: str) -> None:
    """A name that can only be a folder must be one with a model in it."""
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise BadInput(f"the folder {name} holds no model: no config.json; write the folder of save_pretrained")
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if not path.exists() and (looks_local or not name.strip()):
        raise BadInput(f"no such model folder: {name!r}; wanted {BUILT_IN}, a folder with a model, or a hub id")
    if path.is_file():
        raise BadInput(f"{name} is a file; write the folder that contains it")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".;")
