"""Everything a run needs before its first step: checked configuration, data, model, manifest."""

from __future__ import annotations

import dataclasses
import random
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dyn_probe import __version__
from dyn_probe.data.encoding import EncodedPair
from dyn_probe.data.inspect import fitting_limit
from dyn_probe.data.models import load_model, pad_token, position_limit
from dyn_probe.data.prepared import PreparedPairs, Reading, prepare_pairs, skipped_rows
from dyn_probe.data.token_text import measured_texts
from dyn_probe.errors import BadInput, TraceError
from dyn_probe.mass.probes import ProbeSet
from dyn_probe.objectives.pair_terms import TERMS
from dyn_probe.train.batch_terms import with_data
from dyn_probe.train.mass_rows import choose_probes
from dyn_probe.train.objective import Method
from dyn_probe.train.options.config import OPTIONS, RunConfig
from dyn_probe.train.options.config_file import resumed
from dyn_probe.train.parallel import ALONE, Processes, thins


@dataclass(frozen=True, eq=False)
class Setup:
    """What ``prepare`` made; nothing has been written yet."""

    config: RunConfig
    method: Method
    model: nn.Module
    tokenizer: Any
    pairs: list[EncodedPair]
    held_out: list[EncodedPair]
    data: PreparedPairs
    pad_id: int
    device: torch.device
    autocast: Callable[[], Any]
    processes: Processes = ALONE
    max_length: int = 0
    probes: ProbeSet | None = None
    probes_asked: bool = True


def prepare(config: RunConfig, processes: Processes = ALONE) -> Setup:
    """Check the configuration, then load data and model.

    Raises:
        BadInput: anything that cannot work, before anything is written.
    """
    unasked = ("mass_every", "probe_size") if config.mass_every is None else ()
    given = [name for name in OPTIONS if getattr(config, name) is not None and name not in unasked]
    method = Method.of(config)
    config = config.with_model_defaults(thins(config.device) and method.reweighting is None)
    if config.resume:
        config, method = (found := resumed(config, given)), Method.of(found)
    if processes.first:
        check_folder(config)
    check_saved(config)
    check_batch(config, method)
    check_processes(config, method, processes)
    torch.manual_seed(config.seed)
    model, tokenizer = load_model(
        config.model,
        dtype=config.dtype,
        device=processes.device or config.device,
        seed=config.seed,
        lora_rank=config.lora_rank,
        trust_remote_code=config.trust_remote_code,
    )
    limit = fitting_limit(config.max_length, config.truncation, position_limit(model.config))
    data = prepare_pairs(config.data, tokenizer, limit, Reading(config.columns, config.max_pairs, config.strict_data))
    encoded, more = with_data(data.pairs, method, config.data)
    data = dataclasses.replace(data, pairs=encoded, skipped=[*data.skipped, *more])
    pairs, held_out = split(data.pairs, config.eval_fraction, config.seed)
    if config.pairs_per_step > len(pairs):
        raise BadInput(
            f"a step takes {config.pairs_per_step} pairs (batch size × accumulation), but {len(pairs)} are usable; "
            "lower --batch-size or --eval-fraction, or add data"
        )
    probes = choose_probes(config, processes, pairs, held_out, tokenizer, limit.tokens or 0, asked=not unasked)
    if unasked and probes is None:
        config = dataclasses.replace(config, mass_every=0, probe_size=RunConfig().probe_size)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    device = next(model.parameters()).device
    wanted = config.dtype == "autocast"
    autocast = partial(torch.autocast, device.type, torch.bfloat16) if wanted else nullcontext
    return Setup(
        config, method, model, tokenizer, pairs, held_out, data, pad_token(tokenizer), device, autocast, processes,
        limit.tokens or 0, probes, not unasked,
    )  # fmt: skip


def check_folder(config: RunConfig) -> None:
    """Refuse an existing run before any work is done (the trace's writer would refuse it later)."""
    folder = config.folder
    if config.resume and not (folder / "run.json").is_file():
        raise BadInput(f"--resume needs the folder of a run in --out; {folder} does not hold one")
    taken = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if taken and not (config.resume or config.force):
        raise TraceError(f"{folder} exists; write --force to replace the run in it, or name another folder with --out")


def check_saved(config: RunConfig) -> None:
    """Refuse options about the models that a run leaves which contradict each other."""
    if config.keep_checkpoints and not config.checkpoint_every:
        raise BadInput(
            f"--keep-checkpoints {config.keep_checkpoints} keeps the models of checkpoints, and --checkpoint-every is "
            "0, so that there are none; write e.g. --checkpoint-every 20"
        )
    model = Path(config.model).expanduser()
    if config.force and model.is_dir() and config.folder.resolve() in (model.resolve(), *model.resolve().parents):
        raise BadInput(
            f"--force replaces the run in {config.folder}, and with it the model that is to be trained, "
            f"{config.model}; name another folder with --out"
        )


def check_batch(config: RunConfig, method: Method) -> None:
    """Refuse combinations of options that cannot work together."""
    for name in method.terms:
        least = TERMS[name].least_pairs
        if config.batch_size < least:
            raise BadInput(
                f"{method.name} needs {name} ({TERMS[name].meaning}), which is computed from other pairs of the batch; "
                f"write --batch-size {least} or more"
            )
    if method.rows and (config.update or config.metric == "previous"):
        option = "--update" if config.update else "--metric previous"
        shaping = ", ".join(one.name for one in method.shapings if one.shaping.rows)
        raise BadInput(
            f"{option} needs the gradients of the responses' own log-probabilities, and {shaping} records those of "
            f"others ({TERMS[method.rows].meaning.partition(',')[0]}); leave out {option}"
        )
    if config.one_pass and (method.learned or method.reweighting or method.around):
        raise BadInput(
            f"--one-pass takes the gradients from a backward of the responses' log-probabilities, and {method.name} "
            f"with {', '.join(one.name for one in method.shapings)} needs another; leave out --one-pass"
        )
    if config.sft_objective != RunConfig().sft_objective and not config.sft_steps:
        raise BadInput(
            f"--sft-objective {config.sft_objective} is for the warm-up, which has no steps; add e.g. --sft-steps 20"
        )


def check_processes(config: RunConfig, method: Method, processes: Processes) -> None:
    """Refuse what cannot be done exactly with several processes."""
    if config.parallel == "fsdp2" and processes.count == 1:
        raise BadInput(
            "--parallel fsdp2 shards the model over processes, but there is only one; start several with "
            "torchrun --nproc-per-node 2 -m dyn_probe_cli record …"
        )
    if config.every == "auto" and processes.count > 1:
        raise BadInput(
            "--every auto decides by measured time, on which processes would not agree; write a number of steps"
        )
    if config.one_pass and processes.count > 1:
        raise BadInput("--one-pass is for one process: autograd's own gradients are averaged; leave out --one-pass")
    if config.metric == "previous" and processes.count > 1:
        raise BadInput("--metric previous is for one process: with several, gradients are averaged; leave it out")
    if config.batch_size % processes.count:
        raise BadInput(
            f"--batch-size counts the pairs of all processes and must be divisible by their number; got "
            f"{config.batch_size} pairs for {processes.count} processes"
        )
    if processes.sharded and config.tokens_every:
        raise BadInput(
            "--tokens-every needs unsharded weights, which --parallel fsdp2 does not have; write --parallel ddp"
        )
    own = [one.name for one in (method.reweighting, method.learned) if one is not None]
    if processes.sharded and own:
        names = ", ".join(own)
        raise BadInput(
            f"--parallel fsdp2 shards every parameter, and {names} needs unsharded gradients; write --parallel ddp"
        )


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
        "command": shlex.join(["dyn-probe", *sys.argv[1:]]) if "record" in sys.argv else "dyn_probe.train.loop.record",
        "config": dataclasses.asdict(config) | {"shaping": list(config.shaping)},
        "model": {
            "name": config.model,
            "type": str(getattr(model.config, "model_type", "")),
            "parameters": sum(n for n, _ in sizes),
            "trained_parameters": sum(n for n, trained in sizes if trained),
        },
        "data": {"name": config.data, "pairs": len(setup.pairs), "held_out": len(setup.held_out)}
        | setup.data.manifest(),
        "objective": {
            "name": setup.method.name,
            "hyper": setup.method.hyper,
            "shaping": [{"name": one.name, "options": one.options} for one in setup.method.shapings],
            "score": setup.method.score.as_manifest,
        },
        "processes": {"count": setup.processes.count, "parallel": setup.processes.kind or None},
        "skipped_rows": skipped_rows(setup.data.skipped),
        "versions": {"dyn_probe": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
    }


def example_rows(pairs: list[EncodedPair], tokenizer: Any) -> list[dict[str, str]]:
    """The ``examples`` table: each pair as text, as it was measured."""
    texts = (measured_texts(pair, tokenizer) for pair in pairs)
    return [
        {
            "pair_id": pair.pair_id, "prompt": prompt, "chosen": chosen, "rejected": rejected,
            "source": pair.text.source,
        }
        for pair, (prompt, chosen, rejected) in zip(pairs, texts, strict=True)
    ]  # fmt: skip
