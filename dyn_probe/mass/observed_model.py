"""A user's model as an observer needs it: unwrapped, in evaluation mode for a while, with its vocabulary size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from dyn_probe.errors import UnsupportedUse


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode and the random state are restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def unwrapped(model: nn.Module) -> nn.Module:
    """The language model inside the wrappers of DDP, ``torch.compile`` and PEFT; FSDP is not unwrapped."""
    while type(model).__name__ != "FullyShardedDataParallel":
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if hasattr(model, "get_base_model"):
            if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
                raise UnsupportedUse("probe responses are not measured on models with learned prompts (PEFT)")
            model = cast(Any, model).get_base_model()
        elif isinstance(inner, nn.Module):
            model = inner
        else:
            break
    return model


def vocabulary_size(model: nn.Module) -> int:
    """``V``: rows of the output head, or of the input embedding where the model has no separate head."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedUse(f"{type(model).__name__} is an encoder-decoder; wanted a causal language model")
    for getter in ("get_output_embeddings", "get_input_embeddings"):
        weight = getattr(getattr(model, getter, lambda: None)(), "weight", None)
        if weight is not None:
            return int(weight.shape[0])
    if hasattr(config, "vocab_size"):
        return int(config.vocab_size)
    raise UnsupportedUse(
        f"{type(model).__name__} does not say how large its vocabulary is; "
        "wanted get_output_embeddings(), get_input_embeddings() or config.vocab_size"
    )


def position_limit(model: nn.Module) -> int | None:
    """Most tokens the model was built for; None where its configuration names no such number."""
    limit = getattr(getattr(unwrapped(model), "config", None), "max_position_embeddings", None)
    return int(limit) if limit else None


def plain_logits(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """``[R, L, V]`` logits of a plain call of ``model``."""
    output = model(input_ids=input_ids, attention_mask=attention_mask)
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]
