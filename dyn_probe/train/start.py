"""How a run begins: supervised warm-up and reference, or a checkpoint instead; then optimizer and probe."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dyn_probe.data.built_in import built_in_model
from dyn_probe.data.encoding import EncodedPair
from dyn_probe.data.models import DTYPES
from dyn_probe.data.names import BUILT_IN
from dyn_probe.engine.certificate import TOLERANCES
from dyn_probe.mass.start_kl import StartPolicy
from dyn_probe.objectives import SUPERVISED
from dyn_probe.probe import Probe
from dyn_probe.trace.writer import TraceWriter
from dyn_probe.train.batches import step_order
from dyn_probe.train.checkpoints import fitting, keep_model, leave_model, restore, save_checkpoint
from dyn_probe.train.display import Display
from dyn_probe.train.kept_tensors import keep, kept, key_of
from dyn_probe.train.objective import learned_module
from dyn_probe.train.options.shares import read_budget
from dyn_probe.train.parallel import full_state, full_weights, load_full_state, shard
from dyn_probe.train.rate_schedule import add_module, make_optimizer
from dyn_probe.train.reference_model import Reference, evaluate_pairs, frozen_copy, live_reference
from dyn_probe.train.run import Run, WarmStart
from dyn_probe.train.setup import Setup
from dyn_probe.train.warmup import reading_pairs, supervised_stage

LOSS = "last loss"
START, KEPT = "start_model", "start_kept"
"""Keys in a checkpoint: trained weights of the policy at the start of preference training, and what is kept of it."""
FEW = 10
"""Where at most one weight in so many is trained, a copy of the trained ones is small."""
READING_RATE = 2e-3
"""Learning rate of the built-in model's language modelling."""


def start_run(
    setup: Setup, writer: TraceWriter, display: Display, state: dict[str, Any] | None, warm: WarmStart | None = None
) -> Run:
    """Warm-up and reference, or a checkpoint's ``state`` instead; then optimizer and probe."""
    config, model, processes = setup.config, setup.model, setup.processes
    if state is None:
        warm_up(setup, display, writer, warm)
        reference = make_reference(setup, display, warm)
    else:
        reference = resumed_reference(setup, state)
    before = start_policy(setup, reference, state)
    if processes.sharded and reference is not None and reference.model is not None:
        shard(reference.model)
    mask = learned_module(setup.method, model)
    module = processes.wrapped(model)
    optimizer = make_optimizer(config, model.parameters(), config.lr or 0.0)
    if mask is not None and setup.method.learned is not None:
        learned = setup.method.learned
        add_module(optimizer, mask, learned.shaping.module_rate(learned.options))
    first = 0 if state is None else resume(state, model, optimizer, mask, processes.sharded)
    probe = Probe(
        module,
        writer=writer,
        optimizer=optimizer,
        every=config.every or 1,
        budget=read_budget(config.budget),
        last_step=config.steps - 1,
        gram_every=config.gram_every,
        metric_every=0 if setup.method.rows else config.metric_every or 0,
        metric=config.metric,
        split_momentum=bool(config.split_momentum) and not setup.method.rows,
        tolerance=TOLERANCES[torch.bfloat16] if config.dtype == "autocast" else None,
        separate=setup.method.around,
        micro_batches=config.gradient_accumulation,
        update=config.update,
        certify=state is None,
        rank=processes.rank,
        keep_rows=False,
    )
    if state is not None and len(floors := state.get("noise_floors", ())) == processes.count:
        probe.noise_floor = floors[processes.rank]
    if state is not None:
        probe.momentum = state.get("split_momentum", {})
    begun = {} if state is None else held_out_start(state)
    pairs = {} if state is None else {k: (v[0], v[1]) for k, v in state.get("pairs_start", {}).items()}
    memory = {} if state is None else state.get("memory", {})
    return Run(
        setup, writer, display, module, probe, optimizer, reference, mask, first, held_out_start=begun, memory=memory,
        start_policy=before, pairs_start=pairs,
    )  # fmt: skip


def start_policy(setup: Setup, reference: Reference | None, state: dict[str, Any] | None) -> StartPolicy:
    """What is known of the policy at the start of preference training, for the KL to it.

    A model of it is the live reference, a copy of the built-in model, which is small, or with adapters a copy that
    shares all other weights; none where parameters are split over processes.
    """
    rows = [row for pair in setup.held_out for row in (pair.chosen, pair.rejected)]
    positions = sum(len(row.ids) - row.start for row in rows)
    kept = {} if state is None else {key: tuple(values) for key, values in state.get(KEPT, {}).items()}
    known = StartPolicy(positions, kept=kept)
    sizes = [(p.numel(), p.requires_grad) for p in setup.model.parameters()]
    adapters = FEW * sum(n for n, trained in sizes if trained) <= sum(n for n, _ in sizes)
    if setup.processes.sharded or not (setup.held_out or setup.probes):
        return known
    if reference is not None and reference.model is not None:
        known.model = reference.model
    elif (setup.config.model == BUILT_IN or adapters) and (state is None or START in state):
        known.model = frozen_copy(setup.model, share=True)
        if state is not None:
            known.model.load_state_dict(state[START], strict=False)
    return known


def warm_up(setup: Setup, display: Display, writer: TraceWriter, warm: WarmStart | None) -> None:
    """Supervised stages (every process runs the same), or the weights that an earlier run left in ``warm``."""
    config, model = setup.config, setup.model
    losses: dict[str, float] = {}
    basis = (config.batch_size, *(pair.pair_id for pair in setup.pairs))
    if warm is not None and warm.weights and warm.basis == basis:
        model.load_state_dict(warm.weights)
        losses = warm.losses
    else:
        reading = reading_pairs(setup.tokenizer) if config.pretrain_steps else []
        stages = (
            ("pretraining", reading, SUPERVISED, config.pretrain_steps, READING_RATE),
            ("SFT", setup.pairs, config.sft_objective, config.sft_steps, config.sft_lr),
        )
        for title, pairs, objective, steps, lr in stages:
            if steps:
                run_stage = _reading if pairs is reading else _stage
                losses[title] = run_stage(setup, display, title, pairs, objective, steps, lr or 0.0)
        if warm is not None:
            warm.weights = {name: value.clone() for name, value in model.state_dict().items()}
            warm.losses, warm.basis, warm.table = losses, basis, {}
    writer.update_manifest(warmup=losses)


def _stage(
    setup: Setup, display: Display, title: str, pairs: list[EncodedPair], objective: str, steps: int, lr: float
) -> float:
    with display.bar(f"{title:<12}", steps) as advance:
        return supervised_stage(setup, pairs, objective, steps, lr, lambda loss: advance(1, f"loss {loss:.3f}"))


def _reading(
    setup: Setup, display: Display, title: str, pairs: list[EncodedPair], objective: str, steps: int, lr: float
) -> float:
    """The stage that is the same in every run of a seed: its weights are kept between runs."""
    trained = {name: p for name, p in setup.model.named_parameters() if p.requires_grad}
    config, device = setup.config, setup.device
    key = key_of(
        trained,
        rows=[(pair.chosen.ids, pair.chosen.start) for pair in pairs],
        how=(objective, steps, lr, config.seed, config.dtype, config.batch_size, setup.processes.count),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )
    found = kept(key)
    if found is None or found.keys() != {*trained, LOSS}:
        loss = _stage(setup, display, title, pairs, objective, steps, lr)
        keep(key, {**trained, LOSS: torch.tensor(loss, dtype=torch.float64)})
        return loss
    with torch.no_grad(), display.bar(f"{title:<12}", steps) as advance:
        for name, parameter in trained.items():
            parameter.copy_(found[name])
        loss = float(found[LOSS])
        advance(steps, f"loss {loss:.3f}, kept from an earlier run")
    return loss


def make_reference(setup: Setup, display: Display, warm: WarmStart | None = None) -> Reference | None:
    """The reference policy: the policy as it is now. A run that begins as an earlier one did and uses the same pairs
    takes over what that one computed."""
    config, model = setup.config, setup.model
    if not setup.method.objective.needs_reference:
        return None
    if setup.method.live_reference or not config.precompute_reference:
        return live_reference(model, setup.autocast)
    used = pairs_used(setup)
    if warm is not None and warm.table.keys() == {pair.pair_id for pair in used}:
        return Reference(dict(warm.table), None, setup.autocast)
    with display.bar("reference   ", len(used)) as advance:
        table = evaluate_pairs(
            model, used, setup.pad_id, 2 * config.batch_size, setup.device, setup.autocast, advance, setup.processes
        )
    if warm is not None:
        warm.table = dict(table)
    return Reference(table, None, setup.autocast)


def pairs_used(setup: Setup) -> list[EncodedPair]:
    """The pairs that the run's steps use, and the held-out ones."""
    return [*pairs_trained_on(setup), *setup.held_out]


def pairs_trained_on(setup: Setup) -> list[EncodedPair]:
    """The pairs that the run's steps use, in the order in which they are met."""
    config, count = setup.config, len(setup.pairs)
    met = (i for step in range(config.steps) for i in step_order(count, config.pairs_per_step, step, config.seed))
    return [setup.pairs[i] for i in dict.fromkeys(met)]


def resumed_reference(setup: Setup, state: dict[str, Any]) -> Reference | None:
    """The reference of the resumed run: its table, or its weights."""
    if not setup.method.objective.needs_reference:
        return None
    with fitting():
        if "reference_model" in state:
            reference = live_reference(setup.model, setup.autocast)
            assert reference.model is not None
            reference.model.load_state_dict(state["reference_model"])
            return reference
        return Reference({k: (v[0], v[1]) for k, v in state["reference"].items()}, None, setup.autocast)


def held_out_start(state: dict[str, Any]) -> dict[str, tuple[float, float]] | None:
    """What the held-out pairs were at the start of the run that is resumed; None where its checkpoint does not say."""
    known = state.get("held_out_start")
    return None if known is None else {pair: (values[0], values[1]) for pair, values in known.items()}


def resume(
    state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, mask: nn.Module | None, sharded: bool
) -> int:
    """Restore a checkpoint's state; returns the number of completed steps."""
    if sharded:
        with fitting():
            load_full_state(model, optimizer, state["model"], state["optimizer"])
    done = restore(state, None if sharded else model, None if sharded else optimizer)
    if mask is not None:
        with fitting():
            mask.load_state_dict(state["mask"])
    return done


def checkpoint(run: Run, done: int) -> None:
    """Save what a resumed run needs, and the model where checkpoints are kept; rank 0 writes both."""
    model, optimizer = run.setup.model, run.optimizer
    more: dict[str, Any] = {} if run.mask is None else {"mask": run.mask.state_dict()}
    sharded = run.setup.processes.sharded
    if run.reference is not None and run.reference.model is not None:
        twin = run.reference.model
        more["reference_model"] = full_weights(twin) if sharded else twin.state_dict()
    elif run.reference is not None:
        more["reference"] = {k: list(v) for k, v in run.reference.table.items()}
    more |= kept_of_start(run, more)
    if momentum := run.probe.momentum:
        more["split_momentum"] = {name: list(sides) for name, sides in momentum.items()}
    if run.memory:
        more["memory"] = dict(run.memory)
    if run.pairs_start:
        more["pairs_start"] = {pair: list(values) for pair, values in run.pairs_start.items()}
    if run.held_out_start is not None:
        parts = run.setup.processes.gathered(run.held_out_start)
        more["held_out_start"] = {pair: list(values) for part in parts for pair, values in part.items()}
    more["noise_floors"] = run.setup.processes.gathered(run.probe.noise_floor)
    states = full_state(model, optimizer) if sharded else (model.state_dict(), optimizer.state_dict())
    if run.setup.processes.first:
        config = run.config
        with run.writer.surviving():
            if config.keeps != 0:  # before the state: a run that is killed in between comes here again
                keep_model(config.folder, done, config.keeps, *to_save(run, states[0] if sharded else None))
            save_checkpoint(config.folder, done, *states, **more)


def kept_of_start(run: Run, more: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run needs for the KL to the start, beside what is saved already."""
    known = run.start_policy
    parts = run.setup.processes.gathered(known.kept)
    kept = {key: list(values) for part in parts for key, values in part.items()}
    if kept:
        return {KEPT: kept}
    if known.model is None or "reference_model" in more:
        return {}
    trained = {name for name, p in run.setup.model.named_parameters() if p.requires_grad}
    return {START: {name: value for name, value in known.model.state_dict().items() if name in trained}}


def save_trained(run: Run) -> None:
    """Leave the trained model in the run's folder, where that is asked for; rank 0 writes it."""
    if not run.config.save:
        return
    setup = run.setup
    weights = full_weights(setup.model) if setup.processes.sharded else None
    if setup.processes.first:
        with run.writer.surviving():
            leave_model(run.config.folder, run.config.steps, *to_save(run, weights))


def to_save(run: Run, weights: dict[str, Any] | None) -> tuple[Any, ...]:
    """Model, tokenizer, whole weights and, for adapters on the built-in model, that model: no folder holds it."""
    setup, config = run.setup, run.config
    own = config.model == BUILT_IN and config.lora_rank > 0
    base: Any = built_in_model(config.seed) if own else None
    return setup.model, setup.tokenizer, weights, None if base is None else base.to(DTYPES[config.dtype])
