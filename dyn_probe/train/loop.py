"""The reference loop, readable from top to bottom: warm-up, reference, recorded preference training."""

from __future__ import annotations

import math
import statistics
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dyn_probe.data.collating import collate
from dyn_probe.data.encoding import EncodedPair
from dyn_probe.data.saying import said_of
from dyn_probe.errors import BadInput, Diverged
from dyn_probe.objectives import Measured, pulls
from dyn_probe.pairs import PairBatch
from dyn_probe.probe.pair_differences import difference_columns
from dyn_probe.trace.signals import stopping_signals
from dyn_probe.trace.writer import TraceWriter
from dyn_probe.train.batches import step_order
from dyn_probe.train.checkpoints import newest_checkpoint, remove_models
from dyn_probe.train.display import Display, cost_after, cost_before, live_numbers
from dyn_probe.train.final_rows import measure_start, record_final
from dyn_probe.train.held_out import evaluate
from dyn_probe.train.mass_rows import finish_mass, record_mass, start_probes
from dyn_probe.train.memory import out_of_memory, savings
from dyn_probe.train.objective import forward, losses_of, remember, reweighted, terms_of
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.parallel import Processes, averaging, start_processes, wait_for_all
from dyn_probe.train.rate_schedule import learning_rate, set_rate
from dyn_probe.train.run import Run, WarmStart
from dyn_probe.train.setup import example_rows, manifest_of, prepare
from dyn_probe.train.start import checkpoint, save_trained, start_run
from dyn_probe.train.targets import warn_past_target
from dyn_probe.train.token_rows import record_tokens


def record(config: RunConfig, progress: bool = True, warm: WarmStart | None = None) -> Path:
    """Train as configured with the recorder on; returns the trace's folder.

    Started by ``torchrun`` or ``accelerate launch``, every process trains on its slice of each batch.

    Args:
        progress: whether to show progress and notes.
        warm: holds the policy after the supervised stages: reused from an earlier run, or kept for a later one.

    Raises:
        BadInput: the configuration or the data cannot be used; nothing has been written then.
        Diverged: the loss is no longer finite; what was recorded is kept.
        WriteFailed: the trace cannot be begun; with ``strict`` also where the system refuses to write it later.
        StoppedBySignal: SIGTERM or SIGHUP came; as after Ctrl-C the trace is closed.
    """
    try:
        with stopping_signals():
            processes = start_processes(config.parallel, config.device)
            folder = _record(config, processes, Display(progress and processes.first), warm)
            wait_for_all(processes)
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            raise BadInput(f"out of memory: {str(error).splitlines()[0]}; {savings(config)}") from error
        raise
    return folder


def _record(config: RunConfig, processes: Processes, display: Display, warm: WarmStart | None) -> Path:
    setup = prepare(config, processes)
    state = newest_checkpoint(config.folder) if config.resume else None
    display.show(said_of(setup.data))
    begin = None if state is None else int(state["step"])
    writer = TraceWriter(
        config.folder, manifest_of(setup), rank=processes.rank, session=processes.agreed(uuid.uuid4().hex),
        force=config.force, resume=config.resume, resume_step=begin, strict=config.strict,
    )  # fmt: skip
    with writer:
        if state is None and processes.first:
            remove_models(config.folder)
            writer.add("examples", example_rows(setup.pairs, setup.tokenizer))
        run = start_run(setup, writer, display, state, warm)
        if state is None:
            measure_start(run)
        start_probes(run, fresh=state is None)
        train(run)
    return config.folder


def train(run: Run) -> None:
    """Preference training with its checkpoints and the evaluation of the held-out pairs."""
    config, setup = run.config, run.setup
    setup.model.train()
    mib = sum(p.nbytes for p in run.trained) / 2**20
    if config.every == "auto":
        run.display.say(
            f"records take at most {config.budget} of the time (--every auto); --every 1 records every step"
        )
    if cost := cost_before(mib, config.metric_every or 0):
        run.display.say(cost)
    with run.probe, run.display.bar(f"{setup.method.name:<12}", config.steps) as advance:
        advance(run.first)
        for step in range(run.first, config.steps):
            record_mass(run, step)
            if setup.held_out and step % config.eval_every == 0:
                run.probe.log(step, **evaluate(run, step))
            advance(1, train_step(run, step))
            if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0:
                run.probe.flush()
                run.writer.flush()
                setup.processes.gathered(step)  # a checkpoint never runs ahead of another process's rows
                checkpoint(run, step + 1)
        held_out = evaluate(run, config.steps) if setup.held_out else {}
        stop_if_lost(run, held_out)
        if held_out:
            run.writer.update_manifest(held_out=held_out)
        save_trained(run)
        record_final(run)
        record_mass(run, config.steps)
        finish_mass(run)


def train_step(run: Run, step: int) -> str:
    """One optimizer step over its micro-batches; returns the live numbers."""
    config, setup = run.config, run.setup
    started = time.perf_counter()
    rate = learning_rate(config, step)
    set_rate(run.optimizer, rate)
    run.optimizer.zero_grad(set_to_none=True)
    if setup.processes.first:
        record_tokens(run, step)
    order = step_order(len(setup.pairs), config.pairs_per_step, step, config.seed)
    batches, losses = [], []
    for k in range(config.gradient_accumulation):
        whole = [setup.pairs[i] for i in order[k * config.batch_size : (k + 1) * config.batch_size]]
        batch = collate(setup.processes.share(whole), setup.pad_id).to(setup.device)
        last = k == config.gradient_accumulation - 1
        with averaging(run.module, last and setup.method.reweighting is None):
            losses.append(micro_step(run, step, batch, whole, rate))
        batches.append(batch)
    remember(run)
    setup.processes.average_gradients(run.not_averaged)
    run.probe.before_update()
    norm, clipped, values = clip(run, losses)
    stop_if_not_finite(values, step, batches, setup.processes, run.config)
    if not math.isfinite(norm):
        raise Diverged(f"the gradient is not finite at step {step}; what was recorded before is kept. {calmer(config)}")
    if step == run.first and run.probe.noise_floor is None:
        with setup.autocast():
            run.probe.measure_noise(step, batches[0])
    run.probe.measure_precision(step, batches[0])
    befores = evaluated(run, step, batches)
    run.optimizer.step()
    if run.probe.records(step):
        for again, before in zip(batches, befores, strict=True) if realises(run, step) else ((None, None),):
            with setup.autocast():
                run.probe.after_update(again, before)
    run.probe.log(
        step, loss=statistics.fmean(values), learning_rate=rate, grad_norm=norm, grad_norm_clipped=clipped,
        pairs=sum(batch.pairs for batch in batches), step_seconds=time.perf_counter() - started,
    )  # fmt: skip
    warn_past_target(run, step)
    if step == run.first and (cost := cost_after(run.probe.logged(step), config.metric_every or 1)):
        run.display.say(cost)
    return live_numbers(run.probe.fresh, run.start)


def micro_step(run: Run, step: int, batch: PairBatch, whole: list[EncodedPair], rate: float) -> Tensor:
    """Forward and backward of one batch, recorded; returns its losses ``[B]``.

    Args:
        whole: the pairs of the batch over all processes.
    """
    setup, scale = run.setup, 1.0 / run.config.gradient_accumulation
    method = setup.method
    with run.probe.step(
        step, batch.ids, learning_rate=rate, measure=method.reweighting is not None, responses=batch.response_mask
    ) as probe:
        out = forward(run, batch, whole, step)
        terms = terms_of(out, batch)
        losses, columns = losses_of(method, terms)
        if step == run.first:  # before the self-check; later ones are read together with the gradient's norm
            stop_if_not_finite(losses.tolist(), step, [batch], setup.processes, run.config)
        if probe.records(step):
            columns |= difference_columns(out.tokens, batch)
        given: dict[str, Any] = {
            "reference": out.reference, "lengths": batch.lengths, "losses": losses.detach(), "loss_scale": scale
        }  # fmt: skip
        if method.reweighting is not None:
            d_w, d_l = pulls(method.name, terms, method.hyper, method.shapings)
            norm_w, norm_l = probe.measure(out.logps, **given, **columns)
            new = reweighted(run, out.logps, Measured(d_w, d_l, norm_w.to(d_w), norm_l.to(d_l)))
            probe.backward(torch.cat([-new.chosen, new.rejected]) * scale / batch.pairs, **new.columns)
            return losses.detach()
        if method.rows:  # other rows are recorded; the trace's logp_* stay those of the responses
            columns |= dict(zip(("logp_chosen", "logp_rejected"), out.logps.detach().chunk(2), strict=True))
        given |= {"predict": not method.rows, "vanishing": method.vanishing}
        probe.pairs(out.rows, **given, **columns)  # type: ignore[arg-type]
        total = losses.mean() * scale
        if run.config.one_pass:
            probe.one_pass(total)
        else:
            total.backward()  # type: ignore[no-untyped-call]
    return losses.detach()


def realises(run: Run, step: int) -> bool:
    """Whether the pairs of this step are evaluated again after the update."""
    return run.probe.realises(step, run.config.realised_every)


def evaluated(run: Run, step: int, batches: list[PairBatch]) -> list[Tensor | None]:
    """The batches' log-probabilities in eval mode before the update, where the training forward's are no baseline for
    the realised change, since it drew random numbers (dropout); None where they are one."""
    wanted = realises(run, step) and run.probe.draws_random_numbers
    with run.setup.autocast():
        return [run.probe.evaluate(batch) if wanted else None for batch in batches]


def stop_if_not_finite(
    losses: Sequence[float], step: int, batches: Sequence[PairBatch], processes: Processes, config: RunConfig
) -> None:
    """Stop all processes at the first loss that is not finite, naming step and pairs."""
    pairs = [pair for batch in batches for pair in batch.ids]
    own = [pair for pair, loss in zip(pairs, losses, strict=True) if not math.isfinite(loss)]
    bad = [pair for part in processes.gathered(own) for pair in part]
    if bad:
        raise Diverged(
            f"the loss is not finite at step {step} for pairs {', '.join(bad)}; what was recorded before is kept. "
            f"{calmer(config)}"
        )


def stop_if_lost(run: Run, held_out: dict[str, float]) -> None:
    """Stop if the last update left log-probabilities that are not finite: no later loss would show it."""
    realised = [row.get("realised_delta_chosen", 0.0) for row in run.probe.fresh]
    own = not all(math.isfinite(value) for value in (*held_out.values(), *realised))
    if any(run.setup.processes.gathered(own)):
        raise Diverged(
            f"log-probabilities are not finite after the last step, {run.config.steps - 1}; what was recorded is kept. "
            f"{calmer(run.config)}"
        )


def calmer(config: RunConfig) -> str:
    """What to write after a run that diverged."""
    unclipped = config.max_grad_norm == 0
    return f"Lower --lr ({config.lr})" + (", or clip with --max-grad-norm 1" if unclipped else "")


def clip(run: Run, losses: Sequence[Tensor]) -> tuple[float, float, list[float]]:
    """``(‖∇‖ before, after clipping, the pairs' losses)``, read in one copy."""
    limit = run.config.max_grad_norm
    whole: Any = torch.nn.utils.clip_grad_norm_(run.trained, limit if limit > 0 else math.inf)
    whole = whole.full_tensor() if run.setup.processes.sharded else whole
    norm, *values = torch.cat([whole.detach().double()[None], *(loss.double() for loss in losses)]).tolist()
    return norm, min(norm, limit) if limit > 0 else norm, values
