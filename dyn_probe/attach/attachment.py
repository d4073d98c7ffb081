"""A trainer's run with the recorder on: what of the trainer is called through us, and what becomes of our errors."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import wraps
from typing import Any

import torch

from dyn_probe.attach.attach_options import AttachOptions
from dyn_probe.attach.final_pairs import FinalPairs
from dyn_probe.attach.log_window import LogWindow
from dyn_probe.attach.micro_step import MicroStep
from dyn_probe.attach.pair_texts import PairTexts
from dyn_probe.attach.partners import Partners
from dyn_probe.attach.trace_and_probe import ended_by_errors, opened
from dyn_probe.attach.trainer_facts import splits_momentum
from dyn_probe.attach.trainer_kinds import TrainerKind
from dyn_probe.attach.user_lines import next_step, say
from dyn_probe.errors import DynProbeError
from dyn_probe.pairs import PairBatch
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.signals import StoppedBySignal, die_by, reason_of, stopping_signals, undisturbed

THROUGH_US = ("training_step", "compute_loss", "_save_checkpoint")
"""Methods of the trainer that are called through the attachment while it trains."""


class Attachment:
    """Records one call of ``trainer.train``.

    Args:
        trainer: about to begin; all its methods are its own again after ``end``.
        kind: what is known of its class.
    """

    def __init__(self, trainer: Any, kind: TrainerKind, options: AttachOptions) -> None:
        args = trainer.args
        options = options.on(args.device.type, args.world_size)
        self.trainer, self.kind, self.options = trainer, kind, options
        if options.every == "auto":
            say(f"records take at most {100 * options.budget:g}% of the time (every=auto); every=1 records every step")
        weighted = getattr(args, "ld_alpha", None) is not None
        self._splits = splits_momentum(trainer, kind, options, weighted)
        self.writer, self.probe = opened(trainer, kind, options, self._splits)
        with ended_by_errors(self.writer, self.probe):
            self._set_up(plain_reference=not weighted)
        self._put_in_between()
        self._signals = ExitStack()
        self._came = self._signals.enter_context(stopping_signals(second_kills=True))
        atexit.register(self._end_as_signalled)  # after the one below
        atexit.register(self._at_exit)

    def _set_up(self, plain_reference: bool) -> None:
        trainer, options = self.trainer, self.options
        self.texts = PairTexts(trainer.processing_class) if options.text else None
        self.plain_reference = plain_reference
        self.failure: Exception | None = None
        self.micro: MicroStep | None = None
        self.batches: list[PairBatch] = []
        self.losses: list[Any] = []
        resumed = trainer.args.process_index == 0 and trainer.state.global_step > 0
        earlier = list(load_trace(self.writer.path).final["pair_id"]) if resumed else []
        self.final = FinalPairs(options.final_pairs, earlier)
        self.partners = Partners(options.split_momentum is True)
        self.over = self._on_disk = False
        self.window = LogWindow(trainer, self.kind, self.writer, self.plain_reference)
        self.grad_norm: float | torch.Tensor | None = None
        self.step, self._began = 0, 0.0
        self._scored: list[int] = []  # pairs of each batch of a step that is not recorded, but in the table `scores`
        self._befores: list[Any] = []
        self._clip = trainer.accelerator.clip_grad_norm_

    def _put_in_between(self) -> None:
        for name in THROUGH_US:
            original = getattr(self.trainer, name)
            setattr(self.trainer, name, wraps(original)(self._through(name, original)))

        @wraps(self._clip)
        def clip(*args: Any, **kwargs: Any) -> Any:
            self.grad_norm = self._clip(*args, **kwargs)
            return self.grad_norm

        self.trainer.accelerator.clip_grad_norm_ = clip

    def _through(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        around = {
            "training_step": self._training_step,
            "compute_loss": self._compute_loss,
            "_save_checkpoint": self._save_checkpoint,
        }[name]

        def method(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        return method

    def guard(self, hook: Callable[..., None]) -> Callable[..., None]:
        """``hook``, whose errors are kept and do not reach the trainer (``strict``: they do)."""

        @wraps(hook)
        def guarded(*args: Any, **kwargs: Any) -> None:
            if self.failure is None:
                try:
                    hook(*args, **kwargs)
                except Exception as error:
                    if self.options.strict:
                        raise
                    self.failure = error

        return guarded

    def _training_step(self, original: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            self.guard(self._begin)(model, inputs)
            loss = original(model, inputs, *args, **kwargs)
            self.guard(self._finish)()
        except BaseException as error:
            self._break_off(error)
            raise
        self._let_go()
        self.stop_if_failed()
        return loss

    def _break_off(self, error: BaseException) -> None:
        """The training ends before its time, by an error of its own or by Ctrl-C."""
        with undisturbed(error):
            self._let_go()
            self.end(error)
        why = str(error) if isinstance(error, StoppedBySignal) else type(error).__name__
        say(f"the training stopped at step {self.step} ({why}); what was recorded is kept. {self.next_step}")

    def _at_exit(self) -> None:
        """The process ends, and the training has not."""
        error = getattr(sys, "last_value", None)
        self._break_off(error or DynProbeError("the process ended before its training did"))

    def _end_as_signalled(self) -> None:
        """The process ends; where a signal asked it to, it ends by that signal, as it would have without us."""
        if self._came:
            die_by(self._came[0])

    @property
    def next_step(self) -> str:
        """The command to type next."""
        return next_step(self.writer.path)

    def _begin(self, model: Any, inputs: Any) -> None:
        step = self.trainer.state.global_step
        if step != self.step or not self.losses:
            self.window.collect(self.probe.scored)
            self.step, self._began = step, time.perf_counter()
        if not (self.probe.records(step) or self._splits or self.probe.thinned):
            return
        found = self.kind.batch(inputs)
        self.partners.count(found)
        if found.pairs is None:
            return
        self.micro = MicroStep(self.probe, step, inputs, found, self.kind, self.trainer.args, self.guard)
        self.micro.watch(self.trainer, model, self.plain_reference)

    def _compute_loss(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        loss = found[0] if isinstance(found, tuple) else found
        if self.trainer.model.training and isinstance(loss, torch.Tensor):
            self.losses.append(loss.detach())
            if self.micro is not None:
                self.guard(self.micro.take_loss)(loss)
        return found

    def _save_checkpoint(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A training that goes on from the checkpoint finds all rows before it."""
        self.guard(self.flush)()
        return original(*args, **kwargs)

    def _finish(self) -> None:
        if (micro := self.micro) is not None:
            micro.finish()
            if self.probe.records(self.step):
                self._take(micro)
            else:
                self._scored += [micro.batch.pairs] if self.probe.thinned else []
                if self.final.keep(micro.batch) and self.texts is not None:
                    self.writer.add("examples", self.texts.rows(micro.batch))
        if not (self.probe.records(self.step) or self._splits):
            return
        if (accelerator := self.trainer.accelerator).sync_gradients:
            scaled = getattr(accelerator, "scaler", None) is not None
            self.probe.backward_ended() if scaled else self.probe.before_update()

    def _take(self, micro: MicroStep) -> None:
        """Beside its rows: what else is kept of a batch that was recorded, and not only followed."""
        self.batches.append(micro.batch)
        self.window.computed_in(micro.dtype)
        if self.texts is not None:
            self.writer.add("examples", self.texts.rows(micro.batch))
        self.final.keep(micro.batch)

    def _let_go(self) -> None:
        if self.micro is not None:
            self.micro.leave()
        self.micro = None

    def before_step(self) -> None:
        """The gradients are clipped, and the optimizer has not moved yet."""
        self.probe.log(self.step, learning_rate=float(self.trainer.optimizer.param_groups[0]["lr"]))
        for batch in self.batches[:1]:
            self.probe.measure_precision(self.step, batch)
        wanted = self.probe.realises(self.step, self.options.realised_every) and self.probe.draws_random_numbers
        self._befores = [self.probe.evaluate(batch) if wanted else None for batch in self.batches]

    def after_step(self) -> None:
        """The optimizer has made its step."""
        if self.probe.realises(self.step, self.options.realised_every):
            for batch, before in zip(self.batches, self._befores, strict=True):
                self.probe.after_update(batch, before)

    def log_step(self) -> None:
        """What belongs to the step as a whole."""
        limit, norm = self.trainer.args.max_grad_norm, self.grad_norm
        clipped = norm if norm is None or not limit else torch.as_tensor(norm).clamp(max=limit)
        rows = self.probe.fresh if self.batches else []  # a recorded step's numbers are waited for here
        self.probe.log(
            self.step, loss=torch.stack(self.losses).mean(), grad_norm=norm, grad_norm_clipped=clipped,
            step_seconds=time.perf_counter() - self._began,
        )  # fmt: skip
        sizes = [batch.pairs for batch in self.batches]
        if self._scored:
            self.window.expect(self.step, self._scored)
        self.window.add(self.step, rows, sizes, len(self.losses) - len(self._scored), self.partners.missed())
        self.batches, self.losses, self._scored, self.grad_norm = [], [], [], None
        if not self._on_disk:  # what the first step gave survives whatever comes
            self.flush()

    def log(self, logs: dict[str, float]) -> None:
        """The trainer logs."""
        self.window.collect(self.probe.scored)
        self.window.log(logs)

    def flush(self) -> None:
        """Hand all rows to the operating system."""
        self._on_disk = True
        self.probe.flush()
        self.writer.flush()

    def stop_if_failed(self) -> None:
        """After an error of ours: end the recording, and only that."""
        error = self.failure or self.probe.failure
        if error is None or self.over:
            return
        self.end(error)
        kind = "" if str(error) else type(error).__name__
        said = f"the recording stopped at step {self.step}, the training continues: {kind}{str(error).strip()}"
        say(said, everywhere=True)

    def record_final(self) -> None:
        """The table ``final``: pairs that were trained on, with the weights that the training left."""
        self.writer.add("final", self.final.rows(self.probe.evaluate, self.trainer.args.device))
        self.partners.tell(self.writer)

    def end(self, error: BaseException | None = None) -> None:
        """Give the trainer its methods back and close the trace."""
        self.over = True
        atexit.unregister(self._at_exit)
        for name in THROUGH_US:
            self.trainer.__dict__.pop(name, None)
        self.trainer.accelerator.__dict__.pop("clip_grad_norm_", None)
        with suppress(Exception):
            self.probe.close()
        try:
            self.writer.end(error, None if error is None else reason_of(error))
        finally:
            self._signals.close()
            if not self._came:
                atexit.unregister(self._end_as_signalled)
        if error is None:
            with suppress(Exception):
                self.window.check_all_processes()
