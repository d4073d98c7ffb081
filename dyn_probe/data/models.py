"""Models and tokenizers by name: built-in, from a local folder, or from the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dyn_probe.data.built_in import POSITIONS, built_in_model, built_in_tokenizer
from dyn_probe.data.model_folders import adapter_base, is_adapter
from dyn_probe.data.names import BUILT_IN, check_model
from dyn_probe.errors import BadInput, unknown
from dyn_probe.vocabulary import check_vocabulary

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
        name: ``built-in``, a local folder, or a hub id. Of a folder of adapters, the adapters are what is trained, on
            the base model that it names.
        dtype: a name of DTYPES.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, …
        seed: draws the weights of the built-in model and of the adapters.
        lora_rank: rank of new LoRA adapters on every linear layer; 0 trains all weights, or those of the folder's
            adapters.
        trust_remote_code: run code that comes with the model.

    Raises:
        BadInput: a name is unknown, the model or its tokenizer cannot be loaded, the two do not match, or new adapters
            are asked for on adapters.
    """
    if dtype not in DTYPES:
        raise BadInput(unknown("dtype", dtype, DTYPES))
    place, name = pick_device(device), os.path.expanduser(name)
    if name == BUILT_IN:
        model: Any = built_in_model(seed)
        model, tokenizer = model.to(DTYPES[dtype]), built_in_tokenizer()
    elif is_adapter(Path(name)):
        model, tokenizer = _adapted(name, DTYPES[dtype], trust_remote_code, lora_rank)
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
        torch.zeros(1, device=device).item()  # the device meta holds no numbers
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


def _adapted(name: str, dtype: torch.dtype, trust_remote_code: bool, lora_rank: int) -> tuple[Any, Any]:
    """The base model of an adapter folder with its adapters, only these trained, and their tokenizer."""
    base, options = adapter_base(Path(name)), _options(name, trust_remote_code)
    if lora_rank:
        raise BadInput(
            f"{name} holds adapters, which are trained on as they are, and --lora-rank {lora_rank} asks for new ones; "
            f"leave out --lora-rank, or name the base model: --model {base}"
        )
    try:
        from peft import PeftConfig, PeftModel
    except ImportError:
        raise BadInput(f"{name} holds adapters, which need peft; write: pip install 'dyn-probe[peft]'") from None
    model = _weights(base, dtype, options)
    try:
        config = without_dropout(PeftConfig.from_pretrained(name))
        config.base_model_name_or_path = base
        with torch.random.fork_rng(devices=[]):
            model = PeftModel.from_pretrained(model, name, config=config, is_trainable=True)
    except Exception as error:  # peft and safetensors raise several unrelated types here
        raise BadInput(f"cannot put the adapters of {name} on {base}: {_first_line(error)}") from error
    return model, _tokenizer(_tokenizer_place(name, base), options)


def _tokenizer_place(name: str, base: str) -> str:
    """The adapter folder where it holds a tokenizer, else its base model."""
    return name if (Path(name) / "tokenizer_config.json").is_file() else base


def load_tokenizer(name: str, trust_remote_code: bool = False) -> tuple[Any, int | None]:
    """The tokenizer of a model and the model's number of positions, without its weights.

    Args:
        name: as for ``load_model``.

    Raises:
        BadInput: the name is unknown, or its tokenizer or configuration cannot be loaded.
    """
    name = os.path.expanduser(name)
    if name == BUILT_IN:
        tokenizer: Any = built_in_tokenizer()
        positions: int | None = POSITIONS
    else:
        options = _options(name, trust_remote_code)
        base = adapter_base(Path(name)) if is_adapter(Path(name)) else name
        place = _tokenizer_place(name, base)
        tokenizer, positions = _tokenizer(place, options), position_limit(_config(base, options))
    tokenizer.model_max_length = int(1e9)  # our own max_length decides, with a message of its own
    return tokenizer, positions


def position_limit(config: Any) -> int | None:
    """Most tokens that a model of this configuration was built for; None where it names no such number."""
    known = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return known if isinstance(known, int) and known > 0 else None


def _pretrained(name: str, dtype: torch.dtype, trust_remote_code: bool) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or hub id."""
    options = _options(name, trust_remote_code)
    return _weights(name, dtype, options), _tokenizer(name, options)


def _weights(name: str, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """The model of a folder or hub id."""
    from transformers import AutoModelForCausalLM

    config = without_dropout(_config(name, options))
    try:
        return AutoModelForCausalLM.from_pretrained(name, config=config, dtype=dtype, **options)
    except Exception as error:  # transformers and the hub raise a dozen unrelated types here
        raise _cannot_load(name, error) from error


def _options(name: str, trust_remote_code: bool) -> dict[str, Any]:
    """Options of every ``from_pretrained``; the network is left alone where it would not answer."""
    return {"trust_remote_code": trust_remote_code, "local_files_only": check_model(name)}


def _config(name: str, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, **options)
    except Exception as error:
        raise _cannot_load(name, error) from error


def _tokenizer(name: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what some classes make up where there is no file
            raise OSError("no tokenizer files")
    except Exception as error:
        raise BadInput(
            f"model {name!r} has no tokenizer that loads: {_first_line(error)}; save one beside it: "
            f"tokenizer.save_pretrained({name!r})"
        ) from error
    return tokenizer


def _cannot_load(name: str, error: Exception) -> BadInput:
    wanted = f"wanted {BUILT_IN}, a folder with a model, or a hub id"
    return BadInput(f"cannot load model {name!r}: {_first_line(error)}; {wanted}")


def without_dropout(config: Any) -> Any:
    """The configuration with every rate that is called a drop at 0, of parts too (``dropout``, ``attn_pdrop``,
    ``layerdrop``, …): dropout would make log-probabilities those of random models."""
    from transformers import PreTrainedConfig

    for key, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            without_dropout(value)
        elif "drop" in key and isinstance(value, (int, float)) and 0 < value <= 1 and not isinstance(value, bool):
            setattr(config, key, type(value)(0))
    return config


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".;")
