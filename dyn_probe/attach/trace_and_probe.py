"""The trace of a training that is about to begin, and its probe: both, or a refusal that leaves neither behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.attach.trace_folder import open_trace
from dyn_probe.attach.trainer_facts import facts
from dyn_probe.attach.trainer_kinds import TrainerKind
from dyn_probe.probe import Probe
from dyn_probe.probe.following import check_followed
from dyn_probe.trace.signals import reason_of
from dyn_probe.trace.writer import TraceWriter


def opened(trainer: Any, kind: TrainerKind, options: AttachOptions, splits: bool) -> tuple[TraceWriter, Probe]:
    """The writer and the probe of this process.

    Args:
        splits: whether the momentum of chosen and rejected gradients is kept apart.

    Raises:
        BadInput: the trainer's optimizer cannot be followed as asked; no folder has been made then.
        TraceError: the trace cannot be opened.
    """
    args = trainer.args
    check_followed(trainer.optimizer, options.metric, bool(options.metric_every or splits))
    writer = open_trace(options, facts(trainer, kind), args.process_index, trainer.state.global_step)
    with ended_by_errors(writer):
        return writer, Probe(
            trainer.model_wrapped,
            writer=writer,
            optimizer=trainer.optimizer,
            every=options.every or 1,
            budget=options.budget,
            last_step=trainer.state.max_steps - 1,
            gram_every=options.gram_every,
            metric_every=options.metric_every,
            metric=options.metric,
            split_momentum=splits,
            update=options.update,
            layers=options.layers,
            separate=bool(getattr(trainer, "aux_loss_enabled", False) or kind.beside(args)),
            micro_batches=args.gradient_accumulation_steps,
            rank=args.process_index,
            keep_rows=False,
            shielded=not options.strict,
        )


@contextmanager
def ended_by_errors(writer: TraceWriter, probe: Probe | None = None) -> Iterator[None]:
    """Around what follows the opening: an error ends the trace as stopped, and lets go of the optimizer."""
    try:
        yield
    except BaseException as error:
        if probe is not None:
            with suppress(Exception):
                probe.close()
        writer.end(error, reason_of(error))
        raise
