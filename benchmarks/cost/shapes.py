"""Models with random weights, and batches of random pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from dyn_probe import PairBatch

QUIET = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
POSITIONS = 2048
"""The longest row of the benchmark."""
RANK = 16


def gpt2_small(**more: Any) -> Any:
    """GPT-2 small, with twice the positions: 125 M parameters, tied head."""
    return GPT2LMHeadModel(GPT2Config(n_positions=POSITIONS, **QUIET, **more))


def qwen_half_b() -> Any:
    """Qwen2.5-0.5B: 494 M parameters, 24 layers of width 896, biases in q, k and v, tied head of 152k tokens."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, max_position_embeddings=POSITIONS, tie_word_embeddings=True,
        )
    )  # fmt: skip


def llama_1b() -> Any:
    """Llama-3.2-1B: 1.24 B parameters, 16 layers of width 2048, tied head of 128k tokens."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
            num_key_value_heads=8, max_position_embeddings=POSITIONS, tie_word_embeddings=True,
        )
    )  # fmt: skip


def llama_of_width(width: int) -> Any:
    """A Llama of 4 layers of some width, for the growth against it: head of 4096 tokens, untied."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=4,
            num_attention_heads=max(1, width // 64), num_key_value_heads=max(1, width // 64),
            max_position_embeddings=POSITIONS, tie_word_embeddings=False,
        )
    )  # fmt: skip


def tiny(**more: Any) -> Any:
    """A GPT-2 of a few thousand parameters, to try the script itself."""
    small = {"vocab_size": 1031, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1}
    return gpt2_small(**small, **more)


WIDTHS = (256, 512, 1024, 2048)
SHAPES: dict[str, Callable[[], Any]] = {
    "gpt2-small": gpt2_small,
    "gpt2-small-untied": lambda: gpt2_small(tie_word_embeddings=False),
    "qwen2.5-0.5b": qwen_half_b,
    "llama-3.2-1b": llama_1b,
    **{f"llama-{width}": lambda width=width: llama_of_width(width) for width in WIDTHS},  # type: ignore[misc]
    "tiny": tiny,
    "tiny-untied": lambda: tiny(tie_word_embeddings=False),
}
"""Name → a model in torch's default type."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TRAINED = ("all", "lora")
"""All weights, or adapters of rank ``RANK`` on every linear layer."""


def made(shape: str, trained: str, precision: str, device: str) -> Any:
    """A model with random weights in the precision, on the device, the same in every call."""
    torch.manual_seed(0)
    was = torch.get_default_dtype()
    torch.set_default_dtype(PRECISIONS[precision])
    try:
        with torch.device(device):
            model = SHAPES[shape]().train()
    finally:
        torch.set_default_dtype(was)
    if trained == "all":
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    with torch.no_grad():  # peft begins with B = 0, where the gradients of A vanish
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return model


def batch_of(pairs: int, length: int, vocabulary: int, device: str) -> PairBatch:
    """Random pairs: the first half of each row is prompt, the second half response; no padding."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(2, vocabulary, (2 * pairs, length), generator=draw)
    ids[pairs:, : length // 2] = ids[:pairs, : length // 2]
    response = torch.zeros_like(ids)
    response[:, length // 2 :] = 1
    return PairBatch(ids, torch.ones_like(ids), response).to(device)
