"""Everything a run needs before its first step: checked configuration, data, model, manifest."""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from dyn_probe import __version__
from dyn_probe.errors import BadInput, TraceError
from dyn_probe.mass.probes import ProbeSet
from dyn_probe.objectives import objective
from dyn_probe.objectives.terms import MEANINGS
from dyn_probe.train.config import OPTIONS, RunConfig
from dyn_probe.train.config_file import resumed
from dyn_probe.train.data import load_pairs
from dyn_probe.train.encode import EncodedPair, encode_pairs
from dyn_probe.train.mass_rows import choose_probes
from dyn_probe.train.models import load_model, pad_token
from dyn_probe.train.objective import Method
from dyn_probe.train.parallel import ALONE, Processes
from dyn_probe.train.records import Skipped, listed, plain_text

KNOWN_TERMS = ("r_w", "r_l", "kl", "progress")
"""Terms beside log-probabilities that this loop can give an objective."""


@dataclass(frozen=True, eq=False)
class Setup:
    """What ``prepare`` made: nothing of it has been written anywhere."""

    config: RunConfig
    method: Method
    model: nn.Module
    tokenizer: Any
    pairs: list[EncodedPair]
    held_out: list[EncodedPair]
    skipped: list[Skipped]
    pad_id: int
    device: torch.device
    autocast: Callable[[], Any]
    processes: Processes = ALONE
    max_length: int = 0
    probes: ProbeSet | None = None


def prepare(config: RunConfig, processes: Processes = ALONE) -> Setup:
    """Check the configuration, then load data and model.

    Raises:
        BadInput: anything that cannot work, before anything is written.
    """
    config = config.with_model_defaults()
    method = Method.of(config)
    if config.resume:
        resumed(config, tuple(OPTIONS))
    if processes.first:
        check_folder(config)
    check_batch(config, method)
    check_processes(config, method, processes)
    torch.manual_seed(config.seed)
    texts, skipped = load_pairs(config.data, count=config.max_pairs)
    model, tokenizer = load_model(
        config.model,
        dtype=config.dtype,
        device=processes.device or config.device,
        seed=config.seed,
        lora_rank=config.lora_rank,
        trust_remote_code=config.trust_remote_code,
    )
    max_length = fitting_length(config, model)
    encoded, more = encode_pairs(texts, tokenizer, max_length, config.truncation)
    skipped = [*skipped, *more]
    if not encoded:
        raise BadInput(f"no pair of {config.data} can be used: {listed(skipped)}")
    pairs, held_out = split(encoded, config.eval_fraction, config.seed)
    if config.pairs_per_step > len(pairs):
        raise BadInput(
            f"a step takes {config.pairs_per_step} pairs (batch size × accumulation) and {len(pairs)} can be used; "
            "lower --batch-size or --eval-fraction, or add data"
        )
    probes = choose_probes(config, processes, pairs, held_out, tokenizer, max_length)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    device = next(model.parameters()).device
    wanted = config.dtype == "autocast"
    autocast = partial(torch.autocast, device.type, torch.bfloat16) if wanted else nullcontext
    return Setup(
        config, method, model, tokenizer, pairs, held_out, skipped, pad_token(tokenizer), device, autocast, processes,
        max_length, probes,
    )  # fmt: skip


def check_folder(config: RunConfig) -> None:
    """Refuse an existing run before any work is done (the trace's writer would refuse it later)."""
    folder = config.folder
    if config.resume and not (folder / "run.json").is_file():
        raise BadInput(f"--resume wants the folder of a run in --out; {folder} is none")
    taken = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if taken and not (config.resume or config.force):
        raise TraceError(f"{folder} exists; write --force to replace the run in it, or another --out")


def check_batch(config: RunConfig, method: Method) -> None:
    """Refuse combinations of options that cannot work together."""
    unknown = [name for name in objective(method.name).needs(method.hyper) if name not in KNOWN_TERMS]
    if unknown:
        said = ", ".join(f"{name} ({MEANINGS[name]})" for name in unknown)
        raise BadInput(f"{method.name} with these options wants {said}, which no preference file gives; leave them off")
    if method.name == "kto" and config.batch_size < 2:
        raise BadInput("kto estimates its KL from other pairs of the batch; write --batch-size 2 or more")
    if config.update and method.masked:
        raise BadInput(
            "--update follows the responses' own log-probabilities, and with token-mask the recorded gradients are "
            "those of the masked ones; leave --update off"
        )
    if config.sft_objective != RunConfig().sft_objective and not config.sft_steps:
        raise BadInput(
            f"--sft-objective {config.sft_objective} is for the warm-up, which has no steps; add --sft-steps 20"
        )


def check_processes(config: RunConfig, method: Method, processes: Processes) -> None:
    """Refuse what several processes cannot do exactly."""
    if config.parallel == "fsdp2" and processes.count == 1:
        raise BadInput(
            "--parallel fsdp2 splits parameters over processes, and there is one; start them with "
            "torchrun --nproc-per-node 2 -m dyn_probe_cli record …"
        )
    if config.batch_size % processes.count:
        raise BadInput(
            f"--batch-size counts the pairs of all processes and must be divisible by their number; got "
            f"{config.batch_size} pairs for {processes.count} processes"
        )
    if processes.sharded and config.tokens_every:
        raise BadInput("--tokens-every reads whole weights, and --parallel fsdp2 splits them; write --parallel ddp")
    if processes.sharded and (method.normalised or method.masked):
        names = ", ".join(one.name for one in method.shapings)
        raise BadInput(
            f"--parallel fsdp2 splits every parameter, and {names} needs whole gradients of its own making; "
            "write --parallel ddp"
        )


def fitting_length(config: RunConfig, model: nn.Module) -> int:
    """``max_length``, but no more than the model's positions."""
    known = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    return min(config.max_length, known) if isinstance(known, int) and known > 0 else config.max_length


def split(pairs: list[EncodedPair], share: float, seed: int) -> tuple[list[EncodedPair], list[EncodedPair]]:
    """Training and held-out pairs, drawn by seed."""
    held = round(share * len(pairs))
    order = list(range(len(pairs)))
    random.Random(f"{seed}:held-out").shuffle(order)
    return [pairs[i] for i in sorted(order[held:])], [pairs[i] for i in sorted(order[:held])]


def manifest_of(setup: Setup) -> dict[str, Any]:
    """``run.json`` of a run that is about to start."""
    config, model = setup.config, setup.model
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "command": " ".join(["dyn-probe", *sys.argv[1:]]) if "record" in sys.argv else "dyn_probe.train.loop.record",
        "config": dataclasses.asdict(config) | {"shaping": list(config.shaping)},
        "model": {
            "name": config.model,
            "type": str(getattr(model.config, "model_type", "")),
            "parameters": sum(n for n, _ in sizes),
            "trained_parameters": sum(n for n, trained in sizes if trained),
        },
        "data": {"name": config.data, "pairs": len(setup.pairs), "held_out": len(setup.held_out)},
        "objective": {
            "name": setup.method.name,
            "hyper": setup.method.hyper,
            "shaping": [{"name": one.name, "options": one.options} for one in setup.method.shapings],
        },
        "processes": {"count": setup.processes.count, "parallel": setup.processes.kind or None},
        "skipped_rows": [dataclasses.asdict(row) for row in setup.skipped],
        "versions": {"dyn_probe": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
    }


def example_rows(pairs: list[EncodedPair]) -> list[dict[str, str]]:
    """The ``examples`` table: each pair as text."""
    return [
        {
            "pair_id": pair.pair_id,
            "prompt": plain_text(pair.text.prompt),
            "chosen": plain_text(pair.text.chosen),
            "rejected": plain_text(pair.text.rejected),
            "source": pair.text.source,
        }
        for pair in pairs
    ]
