"""Tiny trainings by TRL's ``DPOTrainer``, with the recorder on and without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from dyn_probe.attach.trl import ProbeCallback
from dyn_probe.data.built_in import built_in_tokenizer

WORDS = ["the", "film", "was", "long", "but", "rewarding", "and", "I", "would", "see", "it", "again"]
SMALL = dict(vocab_size=1024, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)


def pairs(count: int = 8) -> Dataset:
    """Pairs whose responses have different lengths."""
    return Dataset.from_list(
        [
            {
                "prompt": f"Review {i}: what do you think?",
                "chosen": " " + " ".join(WORDS[: 2 + (5 * i) % 9]),
                "rejected": " " + " ".join(WORDS[::-1][: 1 + (3 * i + 4) % 8]),
            }
            for i in range(count)
        ]
    )


def llama(seed: int = 0) -> tf.PreTrainedModel:
    """An untied tiny Llama."""
    torch.manual_seed(seed)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL, num_key_value_heads=1, max_position_embeddings=128))


def gpt2(seed: int = 0) -> tf.PreTrainedModel:
    """A tiny GPT-2: its head is tied to the embedding."""
    torch.manual_seed(seed)
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=1024, n_embd=24, n_layer=2, n_head=2, n_positions=128))


def mixtral(seed: int = 0) -> tf.PreTrainedModel:
    """A tiny mixture of experts, whose routers have a loss of their own."""
    torch.manual_seed(seed)
    experts = dict(num_local_experts=4, num_experts_per_tok=2, output_router_logits=True, router_aux_loss_coef=0.1)
    config = tf.MixtralConfig(**SMALL, **experts, num_key_value_heads=1, max_position_embeddings=128)
    return tf.MixtralForCausalLM(config)


MODELS = {"llama": llama, "gpt2": gpt2}
MORE = {**MODELS, "mixtral": mixtral}


def trainer_of(
    folder: Path, model: str = "llama", callbacks: list[Any] | None = None, kind: type = DPOTrainer, **options: Any
) -> DPOTrainer:
    """A trainer of two steps of two pairs on the CPU; every step is logged."""
    extra = {name: options.pop(name) for name in ("peft_config", "eval_dataset") if name in options}
    dtype = options.pop("dtype", torch.float32)
    settings: dict[str, Any] = dict(
        output_dir=str(folder / "out"), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-3,
        logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
        disable_tqdm=True, beta=0.2, seed=3, dataset_num_proc=None,
    )  # fmt: skip
    policy = MORE[model]().to(dtype)
    with_reference = "peft_config" not in extra and not options.get("precompute_ref_log_probs")
    reference = MORE[model](seed=1).to(dtype) if with_reference else None
    return kind(
        model=policy, ref_model=reference, args=DPOConfig(**{**settings, **options}), train_dataset=pairs(),
        processing_class=built_in_tokenizer(), callbacks=callbacks, **extra,
    )  # fmt: skip


def without_reference(folder: Path, kind: str, callbacks: list[Any] | None = None, **options: Any) -> Any:
    """A trainer by ``CPOTrainer`` or ``ORPOTrainer`` (``kind``: ``cpo``, ``orpo``), as ``trainer_of``."""
    import importlib

    module = importlib.import_module(f"trl.experimental.{kind}")
    trainer, config = (getattr(module, f"{kind.upper()}{name}") for name in ("Trainer", "Config"))
    extra = {name: options.pop(name) for name in ("peft_config", "eval_dataset") if name in options}
    policy = MODELS[options.pop("model", "llama")]().to(options.pop("dtype", torch.float32))
    settings: dict[str, Any] = dict(
        output_dir=str(folder / "out"), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-3,
        logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
        disable_tqdm=True, beta=0.2, seed=3, max_length=64,
    )  # fmt: skip
    return trainer(
        model=policy, args=config(**{**settings, **options}), train_dataset=pairs(),
        processing_class=built_in_tokenizer(), callbacks=callbacks, **extra,
    )  # fmt: skip


def kto(folder: Path, callbacks: list[Any] | None = None, **options: Any) -> Any:
    """A trainer by ``KTOTrainer`` on pairs whose responses share a batch, as ``trainer_of``; ``data``: other rows."""
    import trl
    from trl.data_utils import unpair_preference_dataset

    extra = {name: options.pop(name) for name in ("peft_config", "eval_dataset") if name in options}
    dtype, model = options.pop("dtype", torch.float32), options.pop("model", "llama")
    with_reference = "peft_config" not in extra and not options.get("precompute_ref_log_probs")
    data = options.pop("data", None)
    settings: dict[str, Any] = dict(
        output_dir=str(folder / "out"), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-3,
        logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
        disable_tqdm=True, beta=0.2, seed=3,
    )  # fmt: skip
    settings |= options
    half = settings["per_device_train_batch_size"] // 2
    return trl.KTOTrainer(
        model=MORE[model]().to(dtype), ref_model=MORE[model](seed=1).to(dtype) if with_reference else None,
        args=trl.KTOConfig(**settings), processing_class=built_in_tokenizer(), callbacks=callbacks,
        train_dataset=unpair_preference_dataset(pairs(), batch_size=half) if data is None else data, **extra,
    )  # fmt: skip


def recorded(folder: Path, model: str = "llama", probe: dict[str, Any] | None = None, **options: Any) -> DPOTrainer:
    """A trainer after its training with the recorder on; the trace is in ``folder / "run"``."""
    every = dict(gram_every=1, metric_every=1, realised_every=1, update=True)
    callback = ProbeCallback(folder / "run", **{**every, **(probe or {})})
    trainer = trainer_of(folder, model, [callback], **options)
    trainer.train()
    return trainer


def plain(folder: Path, model: str = "llama", **options: Any) -> DPOTrainer:
    """The same training without the recorder."""
    trainer = trainer_of(folder, model, **options)
    trainer.train()
    return trainer


def same_weights(one: Any, other: Any) -> bool:
    """Whether two trained models are bitwise the same."""
    left, right = one.model.state_dict(), other.model.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def logged(trainer: DPOTrainer) -> list[dict[str, float]]:
    """What the trainer logged at each of its steps."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]
