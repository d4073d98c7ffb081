"""``Probe``: records every preference pair of a training loop, from its own backward, without changing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.engine.certificate import SelfCheck
from dyn_probe.engine.shield import Shield
from dyn_probe.engine.survey import distributed
from dyn_probe.errors import BadInput, UnsupportedUse
from dyn_probe.pairs import PairBatch
from dyn_probe.probe.batch_in_progress import BatchInProgress
from dyn_probe.probe.budget import Thinned, schedule_of
from dyn_probe.probe.evaluation import Evaluation
from dyn_probe.probe.following import Following, check_followed
from dyn_probe.probe.outline import Outline
from dyn_probe.probe.precision import Precision
from dyn_probe.probe.recorder_state import Recorder
from dyn_probe.probe.run_rows import RunRows
from dyn_probe.trace.writer import TraceWriter


class Probe(Recorder):
    """Records per-pair gradient dynamics of a training loop into a trace.

    Args:
        model: the module that the loop calls (DDP and PEFT wrappers are fine).
        out: folder of the trace, made by the probe; or give an open ``writer``; with neither, rows are only kept in
            ``probe.rows``.
        optimizer: read for the learning rate, and followed in its steps (``update``, ``metric_every``).
        every: record steps divisible by this; "auto": as often as ``budget`` allows (``budget.Thinned``).
        budget: largest share of the plain time that records may take, with ``every="auto"``.
        last_step: the last step's number, where it is known: ``every="auto"`` records that one too, and in full.
        gram_every: record the full ``[2B, 2B]`` Gram (and the batch prediction) on steps divisible by this; 0 never.
        metric_every: take the optimizer's step apart into pushes on steps divisible by this; 0 never. Such a step holds
            the batch's activations and a copy of the trained weights until it is made.
        metric: "applied", or "previous": also own parts, past and decay in the metric of the step before, at every
            recorded step that is not taken apart; with ``optimizer``, in one process.
        split_momentum: also tell all chosen from all rejected pushes of the present and past steps: every step is held
            then, and two more buffers of the model's size are kept.
        layers: also write the ``layers`` table.
        certify: on the first recorded step, hold one pair against plain autograd and stop if it disagrees.
        tolerance: largest relative error of that check (default: by dtype, ``certificate.TOLERANCES``).
        separate: always measure in a separate backward pass: for losses that also reach the model in other ways.
        update: also record ``update_delta_*``, the first-order change under the optimizer's real step, at every
            recorded step; it holds the same as ``metric_every`` does.
        micro_batches: recorded forwards that share one optimizer step. With several, or in several processes, the batch
            prediction needs ``before_update``.
        averaged: over how many processes the gradients are averaged before the step (default: read off the wrapper).
        manifest, rank, force: entries of ``run.json``; this process's number; replace an existing trace at ``out``.
        strict: stop where the trace cannot be written (full disk, file-size limit); else that is said once.
        keep_rows: keep all recorded rows in ``probe.rows`` (300 to 400 bytes each); False: one step's alone.
        shielded: an error in hooks inside the model's forward and backward and the optimizer's step never leaves them:
            it ends what they do and is kept as ``failure``.
    """

    def __init__(
        self,
        model: nn.Module,
        out: str | Path | None = None,
        *,
        writer: TraceWriter | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        every: int | str = 1,
        budget: float = 0.05,
        last_step: int | None = None,
        gram_every: int = 0,
        metric_every: int = 0,
        metric: str = "applied",
        split_momentum: bool = False,
        layers: bool = True,
        certify: bool = True,
        tolerance: float | None = None,
        separate: bool = False,
        update: bool = False,
        micro_batches: int = 1,
        averaged: int | None = None,
        manifest: Mapping[str, Any] | None = None,
        rank: int = 0,
        force: bool = False,
        strict: bool = False,
        keep_rows: bool = True,
        shielded: bool = False,
    ) -> None:
        if out is not None and writer is not None:
            raise BadInput("give Probe either out or writer, not both")
        check_followed(optimizer, metric, bool(metric_every or split_momentum))
        self.model, self.optimizer, self.rank = model, optimizer, rank
        self.schedule = schedule_of(every, budget, gram_every, metric_every, split_momentum, last_step)
        self.update, self.split_momentum, self._entered = update, split_momentum, -1
        opened = writer if out is None else TraceWriter(out, manifest or {}, rank=rank, force=force, strict=strict)
        super().__init__(RunRows(opened, rank, keep_rows), owns=writer is None and out is not None)
        self._outline = Outline(self._rows)
        check = SelfCheck(tolerance, done=not certify)
        self._shield, self._evaluation = Shield(shielded), Evaluation(model, self._rows)
        self._precision = Precision(self._evaluation, self._rows)
        in_parts = micro_batches > 1 or distributed()
        self._following = Following(
            model, optimizer, self._rows, self.schedule, metric=metric,
            split=split_momentum, update=update, in_parts=in_parts, averaged=averaged, shield=self._shield,
        )  # fmt: skip
        self._batch = BatchInProgress(
            model, self._rows, self.schedule, self._evaluation, self._precision, self._following, check, self._shield,
            layers=layers, separate=separate, in_parts=in_parts,
        )  # fmt: skip

    @contextmanager
    def step(
        self,
        step: int,
        pair_ids: Sequence[str] | None = None,
        learning_rate: float | None = None,
        measure: bool = False,
        segments: Tensor | None = None,
        responses: Tensor | None = None,
    ) -> Iterator[Probe]:
        """Around one forward and backward over ``2B`` rows; does nothing on steps that are not recorded, but that with
        ``every="auto"`` what ``pairs`` is told goes into the table ``scores``.

        Args:
            step, pair_ids: optimizer step, which several micro-batches may share; ``batch.ids``.
            learning_rate: η of the predictions (default: the optimizer's).
            measure: measure in steps that are not recorded too, since the update itself needs the norms.
            segments, responses: ``batch.segments`` of packed rows; ``batch.response_mask``, for the column ``ches``.
        """
        self._batch.armed = self.records(step)
        recorded = self._batch.armed or measure or self.split_momentum
        if not (recorded or isinstance(self.schedule, Thinned)):
            yield self
            return
        if self.recording:
            raise BadInput("probe.step cannot be entered twice at once")
        if step != self._entered:  # (the step may have a row already: what was logged of it before)
            self._begin(step)
        self._entered = step
        if not recorded:
            with self._outline.around(step, pair_ids, segments):
                yield self
            return
        with self._batch.around(step, pair_ids, self._rate(learning_rate), segments, responses, measure):
            yield self

    def pairs(
        self,
        logps: Tensor,
        reference: Tensor | None = None,
        lengths: Tensor | None = None,
        losses: Tensor | None = None,
        loss_scale: float = 1.0,
        predict: bool = True,
        mask: Tensor | None = None,
        alone: bool = True,
        vanishing: bool = True,
        **columns: Tensor,
    ) -> None:
        """Tell the probe about the batch: inside ``probe.step``, before the backward.

        Args:
            logps: ``[2B]`` sequence log-probabilities (nats), the very tensor that the loss is computed from; or, where
                the loss sums over tokens itself, the ``[2B, L]`` log-probabilities of the tokens, with their ``mask``
                (``[rows, L]`` where rows are packed), at the last ``L`` positions.
            reference, lengths: ``[2B]`` reference log-probabilities; response lengths in tokens.
            losses: ``[B]`` loss of each pair.
            loss_scale: backpropagated loss by the mean over the ``B`` pairs (1 / accumulation steps, a scaler's scale).
            predict: write cases and predicted changes. False where ``logps`` are other rows than the responses' own
                log-probabilities, say masked ones (give those as columns ``logp_chosen``, ``logp_rejected`` then);
                not together with ``update`` or pushes.
            mask: ``[2B, L]`` response tokens, with ``logps [2B, L]``. Pulls and predictions are null for pairs whose
                loss weights the tokens of one response differently.
            alone: whether the loss has no other rows than these pairs'.
            vanishing: whether a pull of this loss can be 0, or differ between a response's tokens: such pairs are then
                looked for (one read in a step) and measured separately. With False they have no gradients, except where
                a step reads anyway (self-check, full Gram, float16, pushes as applied) or after one was lost.
            columns: ``[B]`` further columns of the ``pairs`` table (``gate``, ``rho``, …).
        """
        given: dict[str, Any] = {"reference": reference, "lengths": lengths, "losses": losses, "scale": loss_scale}
        if self.recording or self._outline.open:
            taker = self._batch if self.recording else self._outline
            taker.say(logps, mask, columns, **given, predict=predict, alone=alone, vanishing=vanishing)

    def complete(self, loss_scale: float | Tensor | None = None, **found: Tensor) -> None:
        """Inside ``probe.step``, after ``pairs``: what was not known there yet, also once the backward has run.

        Args:
            loss_scale: as for ``pairs``; a tensor of one number is not waited for.
            found: ``reference``, ``lengths``, ``losses`` or further columns, as for ``pairs``; ``coefficients [2B]``:
                ∂loss/∂(row log-probability) by terms that reach the rows otherwise than through the watched tensor.
        """
        (self._batch if self.recording else self._outline).complete(loss_scale, found)

    def measure(self, logps: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        """In place of ``pairs``, where the update depends on the norms: measure now, ``backward`` follows.

        Args:
            given: as for ``pairs``.

        Returns:
            ``(‖g_w‖, ‖g_l‖)``, ``[B]`` each.
        """
        if not self.recording:
            raise BadInput("probe.measure belongs inside probe.step(..., measure=True)")
        self.pairs(logps, **given)
        return self._batch.norms(logps)

    def metric_norms(self, logps: Tensor) -> tuple[Tensor, Tensor] | None:
        """Between ``measure`` and ``backward``: ``(‖g_w‖_P, ‖g_l‖_P)`` in the metric P of the optimizer's last step,
        ``[B]`` each; None before its first step.

        Raises:
            UnsupportedUse: the probe has no optimizer, or one whose metric is not known.
        """
        return self._batch.metric_norms(logps)

    def backward(self, coefficients: Tensor, **columns: Tensor) -> None:
        """After ``measure``: give the parameters the gradient ``Σ_i c_i g_i``, without another backward.

        Args:
            coefficients: ``[2B]`` ``∂loss/∂(row log-probability)``.
            columns: ``[B]`` further columns of the ``pairs`` table.
        """
        self._batch.reweight(coefficients, columns)

    def one_pass(self, loss: Tensor) -> None:
        """In place of ``loss.backward()``, after ``pairs``: the weights' gradients come out of the recorder's own pass,
        and autograd computes none. They are the same to rounding (law 6 of docs/notation.md). In steps that are not
        recorded it is ``loss.backward()``.

        Raises:
            UnsupportedUse: reentrant gradient checkpointing, or several processes, whose gradients are averaged by
                hooks of autograd's.
        """
        if distributed():
            raise UnsupportedUse("one pass is for one process: with several, autograd's own gradients are averaged")
        if self.recording:
            self._batch.one_pass(loss)
        else:
            loss.backward()  # type: ignore[no-untyped-call]

    def backward_ended(self) -> None:
        """After a step's last backward, where that was not recorded itself: κ is read from here on."""
        self._following.backward_ended()

    def before_update(self) -> None:
        """After the step's last backward, before gradients are clipped and ``optimizer.step()``: fill ``batch_delta_*``
        where the step's batch is more than one recorded forward (several processes, micro-batches).

        The parameters' ``.grad`` must hold the gradient of the mean loss over the whole batch: averaged over processes
        (DDP and FSDP2 do that), summed over micro-batches, unscaled. Where parameters are split over processes, all of
        them must call.
        """
        self._following.before_update()

    def evaluate(self, batch: PairBatch) -> Tensor:
        """``[2B]`` log-probabilities in eval mode, without gradients; modes and random state stay as they were."""
        return self._evaluation.evaluate(batch)

    def measure_noise(self, step: int, batch: PairBatch) -> None:
        """Compute the batch's log-probabilities twice from the same weights, together and each pair alone without its
        padding, and keep the largest difference as ``noise_floor`` of the step: no change below it is called one.

        It takes a forward for each pair and one more; does nothing where parameters are split over processes.
        """
        self._evaluation.measure_noise(step, batch)

    def measure_precision(self, step: int, batch: PairBatch) -> None:
        """After the step's backward, before ``optimizer.step()``: where gradients are computed in half precision, hold
        the first pair's numbers against the same weights in float64, and count what the type cannot hold of the
        gradients (``norm_error``, ``inner_error``, ``cosine_error``, ``logp_error``, ``underflow_share``,
        ``overflow_share`` of the step). Of the calls in recorded steps the first, second, fourth, eighth, … measure.

        Args:
            batch: a recorded one of the step.
        """
        if self._batch.armed:
            self._precision.measure(step, batch)

    def after_update(self, batch: PairBatch | None = None, before: Tensor | None = None) -> None:
        """After ``optimizer.step()``: evaluate the step's pairs again and fill ``realised_delta_*``.

        Args:
            batch: the pairs. Without it only ``update_delta_*`` are filled, which need no forward, and no call where
                the probe has the optimizer.
            before: ``probe.evaluate(batch)`` from before the update; wanted where ``draws_random_numbers``.

        Raises:
            BadInput: the training forward drew random numbers, and ``before`` is missing.
        """
        self._following.end()
        if batch is not None and self._batch.armed:
            self._evaluation.realise(batch, before)

    def flush(self) -> None:
        """Hand rows of the steps done so far to the writer."""
        self._flush()
