"""What cannot be recorded exactly: each with the words that say so and what to do. The training itself goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dyn_probe.attach.paired_rows import has_no_pairs
from dyn_probe.attach.trainer_kinds import FUSED, KINDS, dpo_terms, kind_of, trl_version, unpaired


def _argument(name: str) -> Callable[[Any], bool]:
    return lambda trainer: bool(getattr(trainer.args, name, None))


def _flag(name: str) -> Callable[[Any], bool]:
    return lambda trainer: bool(getattr(trainer, name, False))


def _quantized(trainer: Any) -> bool:
    models = [trainer.model, getattr(trainer.model, "base_model", None)]
    return any(
        getattr(one, name, False)
        for one in models
        for name in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
    )


def _prompt_learning(trainer: Any) -> bool:
    configs = getattr(trainer.model, "peft_config", None)
    return isinstance(configs, dict) and any(getattr(one, "is_prompt_learning", False) for one in configs.values())


def _sft_alone(trainer: Any) -> bool:
    return set(dpo_terms(trainer.args) if hasattr(trainer.args, "loss_type") else ()) == {"sft"}


def _single(trainer: Any) -> bool:
    kind = kind_of(trainer)
    return kind is not None and kind.single


NO_PAIRS = (
    "its rows are no pairs, for no batch holds a chosen and a rejected response to one prompt; with data in pairs, "
    "trl.data_utils.unpair_preference_dataset(pairs, batch_size=per_device_train_batch_size // 2) brings both into one "
    "batch; or measure the pairs at its checkpoints: dyn-probe scan CHECKPOINT… --data pairs.jsonl"
)


def _in_parallel(trainer: Any) -> bool:
    config = getattr(trainer.accelerator, "parallelism_config", None)
    return any(getattr(config, name, 1) > 1 for name in ("tp_size", "cp_size", "sp_size"))


TESTED = ((1, 10), (1, 16))
"""The oldest and the newest version of TRL that the tests have run with."""


def _named(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def newer_than_tested() -> str:
    """What to know of a TRL that is newer than those that were tested; "" where it is not."""
    if trl_version() <= TESTED[1]:
        return ""
    return (
        f"TRL {_named(trl_version())} is newer than {_named(TESTED[1])}, the newest that was tested; the recording "
        "checks itself against plain autograd at its first step, and the trainer's logs against its rows"
    )


REFUSALS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda trainer: bool(unpaired(trainer)), "{kind} {unpaired}"),
    (lambda trainer: kind_of(trainer) is None, f"{{kind}} is none of TRL's trainers on pairs: {', '.join(KINDS)}"),
    (lambda trainer: _single(trainer) and has_no_pairs(trainer), f"{{kind}}: {NO_PAIRS}"),
    (_flag("is_encoder_decoder"), "an encoder-decoder model has no rows of prompt and response; train a causal model"),
    (lambda trainer: trl_version() < TESTED[0],
     f"this TRL is older than {_named(TESTED[0])}; install trl>={_named(TESTED[0])}"),
    (lambda trainer: _sft_alone(trainer) and trl_version() < FUSED,
     f"before TRL {_named(FUSED)} loss_type 'sft' alone has no token log-probabilities; install trl>={_named(FUSED)}"),
    (_flag("is_fsdp_enabled"), "FSDP shards the weights; train with DDP (accelerate launch --multi_gpu)"),
    (_flag("is_deepspeed_enabled"), "DeepSpeed keeps gradients and steps to itself; train with DDP"),
    (_in_parallel, "tensor and context parallelism split a row over processes; train with DDP"),
    (_quantized, "a quantized base model (QLoRA) has no exact gradients; load it in bfloat16"),
    (_argument("torch_compile"), "a compiled model hides its layers; write torch_compile=False"),
    (_argument("use_liger_kernel"), "Liger kernels replace the layers; write use_liger_kernel=False"),
    (lambda trainer: bool(getattr(trainer.model, "use_kernels", False)),
     "kernels from the hub replace the layers; write use_kernels=False"),
    (_flag("padding_free"), "padding-free batches have no rows; write padding_free=False"),
    (_flag("_is_vision_dataset"), "images enter the rows of a batch in one piece; only text is recorded"),
    (_prompt_learning, "prompt-learning adapters put virtual tokens before every row; use LoRA"),
)  # fmt: skip
"""Whether it is so → why nothing is recorded and what to write instead."""


def refusal(trainer: Any) -> str:
    """Why this trainer cannot be recorded; "" where it can."""
    words = {"kind": type(trainer).__name__, "unpaired": unpaired(trainer)}
    return next((why.format(**words) for is_so, why in REFUSALS if is_so(trainer)), "")
