"""The reference loop, to be read from top to bottom: warm-up, reference, preference training, recorded."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.certify import TOLERANCES
from dyn_probe.errors import BadInput, Diverged
from dyn_probe.objectives import TokenMask, normalised_pulls, pulls
from dyn_probe.pairs import PairBatch, batch_logits, token_logps
from dyn_probe.probe import Probe
from dyn_probe.trace.writer import TraceWriter
from dyn_probe.train.batches import collate, step_order
from dyn_probe.train.checkpoints import newest_checkpoint, remove_checkpoints, restore, save_checkpoint
from dyn_probe.train.config import RunConfig
from dyn_probe.train.display import Display, live_numbers
from dyn_probe.train.encode import EncodedPair
from dyn_probe.train.objective import forward, losses_of, make_token_mask, terms_of
from dyn_probe.train.reference import Reference, live_reference, precomputed_reference
from dyn_probe.train.schedule import learning_rate, make_optimizer, set_rate
from dyn_probe.train.setup import Setup, example_rows, manifest_of, prepare
from dyn_probe.train.token_rows import record_tokens
from dyn_probe.train.warmup import reading_pairs, supervised_stage


@dataclass(eq=False)
class Run:
    """A run in progress."""

    setup: Setup
    writer: TraceWriter
    display: Display
    probe: Probe
    optimizer: torch.optim.Optimizer
    reference: Reference | None = None
    mask: TokenMask | None = None
    first: int = 0
    start: dict[str, float] = field(default_factory=dict)

    @property
    def config(self) -> RunConfig:
        return self.setup.config

    @property
    def trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def record(config: RunConfig, progress: bool = True) -> Path:
    """Train as configured with the recorder on; returns the trace's folder.

    Raises:
        BadInput: the configuration or the data cannot be used; nothing has been written then.
        Diverged: the loss became no number; what was recorded is kept.
    """
    try:
        return _record(config, Display(progress))
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise BadInput(
                f"out of memory: {str(error).splitlines()[0]}; lower --batch-size (and raise --gradient-accumulation), "
                "or add --gradient-checkpointing, --lora-rank 8, --dtype autocast, a shorter --max-length"
            ) from error
        raise


def _record(config: RunConfig, display: Display) -> Path:
    setup = prepare(config)
    state = newest_checkpoint(config.folder) if config.resume else None
    display.warn_skipped(setup.skipped, len(setup.pairs) + len(setup.held_out))
    begin = None if state is None else int(state["step"])
    writer = TraceWriter(config.folder, manifest_of(setup), force=config.force, resume=config.resume, resume_step=begin)
    with writer:
        if state is None:
            remove_checkpoints(config.folder)
            writer.add("examples", example_rows(setup.pairs))
        run = start_run(setup, writer, display, state)
        train(run)
    return config.folder


def start_run(setup: Setup, writer: TraceWriter, display: Display, state: dict[str, Any] | None) -> Run:
    """Warm-up and reference, or a checkpoint in their place; then the probe and the optimizer."""
    config, model = setup.config, setup.model
    reference = make_reference(setup, display, writer) if state is None else None
    mask = make_token_mask(setup.method, model)
    optimizer = make_optimizer(config, [*model.parameters(), *(mask.parameters() if mask else ())], config.lr or 0.0)
    first = 0
    if state is not None:
        reference = resumed_reference(setup, state)
        first = restore(state, model, optimizer)
        if mask is not None:
            mask.load_state_dict(state["mask"])
    probe = Probe(
        model,
        writer=writer,
        optimizer=optimizer,
        every=config.every,
        gram_every=config.gram_every,
        tolerance=TOLERANCES[torch.bfloat16] if config.dtype == "autocast" else None,
        separate=setup.method.masked,
        certify=state is None,
    )
    return Run(setup, writer, display, probe, optimizer, reference, mask, first)


def make_reference(setup: Setup, display: Display, writer: TraceWriter) -> Reference | None:
    """Supervised stages, then the reference policy as it is after them."""
    config, model = setup.config, setup.model
    stages = (
        (
            "reading",
            reading_pairs(setup.tokenizer) if config.pretrain_steps else [],
            "sft",
            config.pretrain_steps,
            2e-3,
        ),
        ("SFT", setup.pairs, config.sft_objective, config.sft_steps, config.sft_lr),
    )
    losses = {}
    for title, pairs, objective, steps, lr in stages:
        if steps:
            with display.bar(f"{title:<12}", steps) as advance:
                losses[title] = supervised_stage(
                    setup,
                    pairs,
                    objective,
                    steps,
                    lr or 0.0,
                    lambda loss, go=advance: go(1, f"loss {loss:.3f}"),  # type: ignore[misc]
                )
    writer.update_manifest(warmup=losses)
    if not setup.method.needs_reference:
        return None
    if setup.method.needs_live_reference or not config.precompute_reference:
        return live_reference(model, setup.autocast)
    used = pairs_used(setup)
    with display.bar("reference   ", len(used)) as advance:
        return precomputed_reference(
            model, used, setup.pad_id, 2 * config.batch_size, setup.device, setup.autocast, advance
        )


def pairs_used(setup: Setup) -> list[EncodedPair]:
    """The pairs that the run's steps meet, and the held-out ones."""
    config = setup.config
    met = {
        i
        for step in range(config.steps)
        for i in step_order(len(setup.pairs), config.pairs_per_step, step, config.seed)
    }
    return [*(setup.pairs[i] for i in sorted(met)), *setup.held_out]


def resumed_reference(setup: Setup, state: dict[str, Any]) -> Reference | None:
    """The reference of the run that is resumed: its table, or the weights it had."""
    if not setup.method.needs_reference:
        return None
    if "reference_model" in state:
        reference = live_reference(setup.model, setup.autocast)
        assert reference.model is not None
        reference.model.load_state_dict(state["reference_model"])
        return reference
    return Reference({k: (v[0], v[1]) for k, v in state["reference"].items()}, None, setup.autocast)


def train(run: Run) -> None:
    """Preference training, a checkpoint now and then, and the held-out pairs."""
    config, setup = run.config, run.setup
    setup.model.train()
    with run.probe, run.display.bar(f"{setup.method.name:<12}", config.steps) as advance:
        advance(run.first)
        for step in range(run.first, config.steps):
            if setup.held_out and step % config.eval_every == 0:
                run.probe.log(step, **evaluate(run))
            advance(1, train_step(run, step))
            if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0:
                run.probe.flush()
                run.writer.flush()
                checkpoint(run, step + 1)
        if setup.held_out:
            run.writer.update_manifest(held_out=evaluate(run))


def train_step(run: Run, step: int) -> str:
    """One optimizer step over its micro-batches; returns the live numbers."""
    config, setup = run.config, run.setup
    started = time.perf_counter()
    rate = learning_rate(config, step)
    set_rate(run.optimizer, rate)
    run.optimizer.zero_grad(set_to_none=True)
    record_tokens(run, step)
    order = step_order(len(setup.pairs), config.pairs_per_step, step, config.seed)
    batches, losses = [], []
    for k in range(config.gradient_accumulation):
        pairs = [setup.pairs[i] for i in order[k * config.batch_size : (k + 1) * config.batch_size]]
        batch = collate(pairs, setup.pad_id).to(setup.device)
        losses.append(micro_step(run, step, batch, pairs, rate))
        batches.append(batch)
    norm, clipped = clip(run)
    run.optimizer.step()
    if config.realised and run.probe.records(step):
        for batch in batches:
            with setup.autocast():
                run.probe.after_update(batch)
    run.probe.log(
        step, loss=float(torch.cat(losses).mean()), learning_rate=rate, grad_norm=norm, grad_norm_clipped=clipped,
        pairs=config.pairs_per_step, step_seconds=time.perf_counter() - started,
    )  # fmt: skip
    return live_numbers(run.probe.fresh, run.start)


def micro_step(run: Run, step: int, batch: PairBatch, pairs: list[EncodedPair], rate: float) -> Tensor:
    """Forward and backward of one batch, recorded; returns its losses ``[B]``."""
    setup, scale = run.setup, 1.0 / run.config.gradient_accumulation
    method = setup.method
    with run.probe.step(step, batch.ids, learning_rate=rate, measure=method.normalised) as probe:
        out = forward(
            setup.model,
            batch,
            pairs,
            method,
            run.reference,
            run.mask,
            step / run.config.steps,
            setup.pad_id,
            setup.autocast,
        )
        terms = terms_of(out, batch)
        losses, columns = losses_of(method, terms)
        stop_if_not_finite(losses, step, batch)
        given: dict[str, Any] = {
            "reference": out.reference, "lengths": batch.lengths, "losses": losses.detach(), "loss_scale": scale
        }  # fmt: skip
        if method.normalised:
            d_w, d_l = pulls(method.name, terms, method.hyper, method.shapings)
            norms = probe.measure(out.logps, **given, **columns)
            new = normalised_pulls(d_w, d_l, norms[0].to(d_w), norms[1].to(d_l))
            probe.backward(
                torch.cat([-new.chosen, new.rejected]) * scale / batch.pairs,
                normaliser_chosen=new.normaliser_chosen, normaliser_rejected=new.normaliser_rejected,
            )  # fmt: skip
            return losses.detach()
        if method.masked:
            masked = pulls(method.name, terms, method.hyper, method.shapings)
            probe.pairs(out.logps, **given, pulls=masked, **columns)  # type: ignore[arg-type]
            ((losses.mean() + 0.0 * out.logps.sum()) * scale).backward()
        else:
            probe.pairs(out.logps, **given, **columns)  # type: ignore[arg-type]
            (losses.mean() * scale).backward()
    return losses.detach()


def stop_if_not_finite(losses: Tensor, step: int, batch: PairBatch) -> None:
    """Stop at the first loss that is no number, naming step and pairs."""
    bad = [pair for pair, loss in zip(batch.ids, losses.tolist(), strict=True) if not math.isfinite(loss)]
    if bad:
        raise Diverged(
            f"the loss is not finite at step {step} for pairs {', '.join(bad)}; what was recorded before is kept. "
            "Lower --lr, or clip with --max-grad-norm 1"
        )


def clip(run: Run) -> tuple[float, float]:
    """``(‖∇‖ before, after clipping)``."""
    limit = run.config.max_grad_norm
    norm = float(torch.nn.utils.clip_grad_norm_(run.trained, limit if limit > 0 else math.inf))
    return norm, min(norm, limit) if limit > 0 else norm


@torch.no_grad()
def evaluate(run: Run) -> dict[str, float]:
    """Means over the held-out pairs, in eval mode: columns ``eval_*`` of the ``steps`` table."""
    setup, size = run.setup, 2 * run.config.batch_size
    was = setup.model.training
    setup.model.eval()
    sums = {"eval_logp_chosen": 0.0, "eval_logp_rejected": 0.0, "eval_margin": 0.0, "eval_accuracy": 0.0}
    for k in range(0, len(setup.held_out), size):
        batch = collate(setup.held_out[k : k + size], setup.pad_id).to(setup.device)
        with setup.autocast():
            a, b = token_logps(batch_logits(setup.model, batch), batch).sum(1).double().chunk(2)
        margin = a - b
        if run.reference is not None:
            r_w, r_l = run.reference.rows(batch).double().chunk(2)
            margin = margin - (r_w - r_l)
        for name, value in zip(sums, (a, b, margin, (margin > 0).double()), strict=True):
            sums[name] += float(value.sum())
    setup.model.train(was)
    return {name: value / len(setup.held_out) for name, value in sums.items()}


def checkpoint(run: Run, done: int) -> None:
    """Save what a resumed run needs."""
    more: dict[str, Any] = {} if run.mask is None else {"mask": run.mask.state_dict()}
    if run.reference is not None and run.reference.model is not None:
        more["reference_model"] = run.reference.model.state_dict()
    elif run.reference is not None:
        more["reference"] = {k: list(v) for k, v in run.reference.table.items()}
    save_checkpoint(run.config.folder, done, run.setup.model, run.optimizer, **more)
