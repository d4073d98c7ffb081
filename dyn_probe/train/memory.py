"""Running out of memory: how to recognise it, and which options of the run would reduce its memory."""

from __future__ import annotations

import torch

from dyn_probe.train.options.config import RunConfig

SIGNS = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""Phrases in the messages of allocators and libraries; only some of these errors are ``torch.OutOfMemoryError``."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


def savings(config: RunConfig) -> str:
    """The options that would reduce this run's memory and are not set yet."""
    hints = (
        (config.batch_size > 1, "a lower --batch-size with a higher --gradient-accumulation"),
        (not config.gradient_checkpointing, "--gradient-checkpointing"),
        (not config.lora_rank, "--lora-rank 8"),
        (config.dtype in ("float32", "float64"), "--dtype bfloat16"),
        (config.max_length > 64, f"a --max-length below {config.max_length}"),
        (not config.precompute_reference, "--precompute-reference"),
        (config.update, "leaving out --update"),
        (config.gram_every > 0, "--gram-every 0"),
        (config.tokens_every > 0, "--tokens-every 0"),
    )
    return "try " + ", or ".join([*(text for helps, text in hints if helps), "a smaller model"])
