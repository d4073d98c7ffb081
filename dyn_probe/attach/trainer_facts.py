"""What ``run.json`` says of a recorded trainer, read off its configuration."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dyn_probe import __version__
from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.attach.trainer_kinds import TrainerKind
from dyn_probe.errors import BadInput

HYPER = (
    "beta", "label_smoothing", "f_divergence_type", "f_alpha_divergence_coef", "ld_alpha", "use_weighting",
    "cpo_alpha", "simpo_gamma", "alpha", "desirable_weight", "undesirable_weight",
)  # fmt: skip
"""Settings of the loss, as the trainer's configuration names them."""

FEW = 0.25
"""Share of the parameters up to which so few are trained that two more buffers of their size are cheap."""


def facts(trainer: Any, kind: TrainerKind) -> dict[str, Any]:
    """The manifest of a run that is about to start."""
    args, terms = trainer.args, kind.terms(trainer.args)
    model = trainer.accelerator.unwrap_model(trainer.model)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "command": shlex.join(sys.argv),
        "config": _config(args),
        "model": {
            "name": getattr(model.config, "_name_or_path", "") or type(model).__name__,
            "type": str(getattr(model.config, "model_type", "")),
            "parameters": sum(n for n, _ in sizes),
            "trained_parameters": sum(n for n, trained in sizes if trained),
        },
        "data": {"name": _name(trainer.train_dataset), "pairs": _size(trainer.train_dataset),
                 "held_out": _size(trainer.eval_dataset), "max_length": getattr(args, "max_length", None),
                 "digest": _digest(trainer.train_dataset)},
        "objective": {
            "name": kind.name(args),
            "hyper": {"loss_type": list(terms), "loss_weights": list(terms.values())}
            | {name: getattr(args, name) for name in HYPER if getattr(args, name, None) is not None},
            "score": kind.score(args).as_manifest,
        },
        "processes": {"count": args.world_size, "parallel": "ddp" if args.world_size > 1 else None},
        "versions": _versions(),
        "trainer": {"name": type(trainer).__name__, "precision": _precision(args),
                    "gradient_checkpointing": bool(args.gradient_checkpointing),
                    "precompute_ref_log_probs": bool(getattr(args, "precompute_ref_log_probs", False)),
                    "sync_ref_model": bool(getattr(args, "sync_ref_model", False))},
    }  # fmt: skip


def splits_momentum(trainer: Any, kind: TrainerKind, options: AttachOptions, weighted: bool) -> bool:
    """Whether the momentum of all chosen is kept apart from that of all rejected gradients: as asked for; else where it
    is cheap and of use.

    Args:
        weighted: whether the loss weights the tokens of a response differently, so that no push is recorded.

    Raises:
        BadInput: it was asked for in several processes, of a trainer on single responses: one without a partner, whose
            gradient neither side has, ends the recording of its process, and with it what the others add up.
    """
    if options.split_momentum and kind.single and trainer.args.world_size > 1:
        raise BadInput(
            f"split_momentum sums the gradients of both sides over all {trainer.args.world_size} processes at every "
            f"step, and a batch of {type(trainer).__name__} may hold a response without a partner, which belongs to "
            "no pair; leave split_momentum out, or train in one process"
        )
    if options.split_momentum is not None:
        return options.split_momentum
    weighted = weighted or kind.single
    sizes = [(p.numel(), p.requires_grad) for p in trainer.accelerator.unwrap_model(trainer.model).parameters()]
    few = sum(n for n, trained in sizes if trained) <= FEW * sum(n for n, _ in sizes)
    thinned = options.every == "auto"
    return few and options.metric_every > 0 and not (weighted or thinned) and trainer.args.world_size == 1


def _config(args: Any) -> dict[str, Any]:
    """Settings of the training, under the names that our own loop has for them."""
    return {
        "lr": args.learning_rate,
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
        "batch_size": args.per_device_train_batch_size * args.world_size,
        "gradient_accumulation": args.gradient_accumulation_steps,
        "epochs": float(args.num_train_epochs),
        "seed": args.seed,
        "beta": getattr(args, "beta", None),
    }


def _versions() -> dict[str, str]:
    import transformers
    import trl

    own = {"dyn_probe": __version__, "torch": torch.__version__, "python": sys.version.split()[0]}
    return own | {"transformers": transformers.__version__, "trl": trl.__version__}


def _precision(args: Any) -> str:
    return "bf16 autocast" if args.bf16 else "fp16 autocast" if args.fp16 else "as the weights"


def _name(data: Any) -> str | None:
    return getattr(getattr(data, "info", None), "dataset_name", None)


def _digest(data: Any) -> str | None:
    """Of the token ids of a few rows of a ``datasets.Dataset``: the same data in another process has the same. None for
    other data, whose rows might draw random numbers when they are read."""
    if not (hasattr(data, "with_format") and hasattr(data, "__getitem__")):
        return None
    size, plain = _size(data) or 0, data.with_format(None)
    rows = [plain[i] for i in sorted({0, size // 2, size - 1})] if size else []
    named = [
        {name: row[name] for name in sorted(row) if name.endswith("_ids")} for row in rows if isinstance(row, dict)
    ]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16] if named else None


def _size(data: Any) -> int | None:
    if isinstance(data, Mapping):
        return sum(size for part in data.values() if (size := _size(part)) is not None)
    return len(data) if isinstance(data, Sequence) or hasattr(data, "__len__") else None
