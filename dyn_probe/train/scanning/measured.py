"""Pairs measured at saved checkpoints, without training: one trace whose steps are the checkpoints'."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dyn_probe.data.collating import collate
from dyn_probe.data.model_folders import quiet
from dyn_probe.data.models import load_model, pad_token
from dyn_probe.data.saying import said_of
from dyn_probe.engine.certificate import TOLERANCES
from dyn_probe.errors import BadInput, Diverged
from dyn_probe.objectives import Terms
from dyn_probe.pairs import batch_logits, token_logps
from dyn_probe.probe import Probe
from dyn_probe.probe.pair_differences import difference_columns
from dyn_probe.trace.signals import stopping_signals
from dyn_probe.trace.writer import TraceWriter
from dyn_probe.train.display import Display
from dyn_probe.train.memory import out_of_memory
from dyn_probe.train.objective import losses_of
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.reference_model import Reference, evaluate_pairs
from dyn_probe.train.scanning.plan import Plan, plan_scan, scan_words
from dyn_probe.train.scanning.saved_steps import OF_SCAN, Checkpoint, find_checkpoints
from dyn_probe.train.setup import Setup, example_rows, manifest_of


def scan(checkpoints: Sequence[str], config: RunConfig, reference: str = "", progress: bool = True) -> Path:
    """Measure the pairs at each checkpoint into one trace; returns its folder.

    A folder that holds such a scan already is gone on with: what is missing is measured.

    Args:
        checkpoints: models as ``--model`` takes them, or folders that hold ``checkpoint-STEP``.
        config: its fields OF_SCAN count.
        reference: the reference policy; empty: the first checkpoint by step, or that of the scan that goes on.
        progress: whether to show progress and notes.

    Raises:
        BadInput: checkpoints, data or objective cannot be scanned, or a scan in the folder has other settings.
        TraceError: the folder holds something else.
        Diverged: a checkpoint's log-probabilities are not finite; what was measured before it is kept.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BadInput("a scan is made by one process; start it without torchrun or accelerate launch")
    try:
        with stopping_signals():
            plan, display = plan_scan(find_checkpoints(checkpoints), config, reference), Display(progress)
            display.show(said_of(plan.data))
            display.say(scan_words(plan))
            if plan.missing:
                run_scan(plan, display)
            return plan.config.folder
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            said = str(error).splitlines()[0]
            raise BadInput(
                f"out of memory: {said}; lower --batch-size or --max-length, or write --dtype bfloat16"
            ) from error
        raise


def run_scan(plan: Plan, display: Display) -> None:
    """Measure what is missing. One model is in memory at a time."""
    todo = plan.missing
    setup, table = setup_at(plan.reference or todo[0].model, plan), None
    if plan.reference is not None:
        table = reference_table(setup, display)
    if setup.config.model != todo[0].model:
        del setup
        setup = setup_at(todo[0].model, plan)
    manifest = manifest_of(setup) | {"command": _command(), "config": _options(plan.config), "scan": plan.manifest([])}
    with TraceWriter(
        plan.config.folder, manifest, force=plan.config.force, resume=plan.begun,
        resume_step=todo[0].step if plan.begun else None, strict=plan.config.strict,
    ) as writer:  # fmt: skip
        if not plan.begun:
            writer.add("examples", example_rows(setup.pairs, plan.tokenizer))
        for place, one in enumerate(todo):
            if place:
                del setup
                setup = setup_at(one.model, plan)
            with display.bar(f"step {one.step:<7}", len(setup.pairs)) as advance:
                measure(setup, writer, one, table, advance)
            writer.flush()
            if writer.complete:
                writer.update_manifest(scan=plan.manifest(todo[: place + 1]))


def measure(
    setup: Setup, writer: TraceWriter, at: Checkpoint, reference: Reference | None, advance: Callable[[int], None]
) -> None:
    """Record every pair under the model of ``setup``: a forward and a backward, no step of an optimizer."""
    config, method = setup.config, setup.method
    tolerance = TOLERANCES[torch.bfloat16] if config.dtype == "autocast" else None
    ordered = sorted(setup.pairs, key=lambda pair: len(pair.chosen.ids) + len(pair.rejected.ids))
    with Probe(setup.model, writer=writer, separate=method.around, tolerance=tolerance, keep_rows=False) as probe:
        for start in range(0, len(ordered), config.batch_size):
            batch = collate(ordered[start : start + config.batch_size], setup.pad_id).to(setup.device)
            with probe.step(at.step, batch.ids, responses=batch.response_mask):
                with setup.autocast():
                    tokens = token_logps(batch_logits(setup.model, batch), batch)
                logps = tokens.sum(1)
                if not bool(logps.isfinite().all()):
                    raise Diverged(f"log-probabilities are not finite at step {at.step}, {at.model}; leave it out")
                expected = None if reference is None else reference.rows(batch).to(logps.dtype)
                losses, columns = losses_of(method, Terms.from_rows(logps, batch.lengths, expected))
                probe.pairs(
                    logps,
                    reference=expected,
                    lengths=batch.lengths,
                    losses=losses.detach(),
                    **columns | difference_columns(tokens, batch),  # type: ignore[arg-type]
                )
                losses.mean().backward()
            if not start:
                probe.measure_precision(at.step, batch)
            setup.model.zero_grad(set_to_none=True)
            advance(batch.pairs)


def setup_at(model: str, plan: Plan) -> Setup:
    """Everything that the measurement at one model needs; the model is in eval mode, so that nothing is drawn."""
    config, data = plan.config, plan.data
    with quiet():
        loaded, _ = load_model(
            model, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
        )
    device = next(loaded.parameters()).device
    autocast = partial(torch.autocast, device.type, torch.bfloat16) if config.dtype == "autocast" else nullcontext
    return Setup(
        replace(config, model=model), plan.method, loaded.eval(), plan.tokenizer, data.pairs, [], data,
        pad_token(plan.tokenizer), device, autocast, max_length=data.limit.tokens or 0,
    )  # fmt: skip


def reference_table(setup: Setup, display: Display) -> Reference:
    """The pairs' log-probabilities under the model of ``setup``."""
    with display.bar("reference   ", len(setup.pairs)) as advance:
        table = evaluate_pairs(
            setup.model, setup.pairs, setup.pad_id, 2 * setup.config.batch_size, setup.device, setup.autocast, advance,
            setup.processes,
        )  # fmt: skip
    return Reference(table, None, setup.autocast)


def _options(config: RunConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in OF_SCAN}


def _command() -> str:
    return shlex.join(["dyn-probe", *sys.argv[1:]]) if "scan" in sys.argv else "dyn_probe.train.scanning.measured.scan"
