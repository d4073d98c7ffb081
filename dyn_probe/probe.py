"""``Probe``: records every preference pair of a training loop, from its own backward, without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.capture.autocast import computing_in
from dyn_probe.capture.uses import Kind, Layer, layers_of, trained_parameters
from dyn_probe.certify import Certificate, compare, law_one_error, plain_products, tolerance_for
from dyn_probe.changes import NO_GRADIENT, REALISED, Changes, fill_realised, without_realised
from dyn_probe.errors import BadInput
from dyn_probe.gram.api import sum_layers
from dyn_probe.gram.tokens import eval_mode
from dyn_probe.pairs import PairBatch, sequence_logps
from dyn_probe.recording import Products, Recording, distributed
from dyn_probe.rows import Row, layer_rows, pair_columns, pair_rows, step_means
from dyn_probe.trace.writer import TraceWriter


class Probe:
    """Records per-pair gradient dynamics of a training loop into a trace.

    Args:
        model: the module that the loop calls (DDP and PEFT wrappers are fine).
        out: folder of the trace, made by the probe; or give an open ``writer``; with neither, rows are only kept in
            ``probe.rows``.
        optimizer: read for the learning rate.
        every: record steps divisible by this.
        gram_every: record the full ``[2B, 2B]`` Gram (and the batch prediction) on steps divisible by this; 0 never.
        layers: also write the ``layers`` table.
        certify: on the first recorded step, compute one pair again by plain autograd and stop if it disagrees.
        tolerance: largest relative error of that check (default: by dtype, ``certify.TOLERANCES``).
        separate: measure by a backward of its own always: for losses that reach the model by other ways too.
        micro_batches: recorded forwards that share one optimizer step. With several, or in several processes, the batch
            prediction needs ``before_update``.
        update: also record ``update_delta_*``, the first-order change under the optimizer's real update (METHODS §8);
            it keeps a copy of the trained parameters and the batch's activations until ``after_update``.
        manifest: entries of ``run.json``.
        rank: this process's number.
        force: replace an existing trace at ``out``.
    """

    def __init__(
        self,
        model: nn.Module,
        out: str | Path | None = None,
        *,
        writer: TraceWriter | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        every: int = 1,
        gram_every: int = 0,
        layers: bool = True,
        certify: bool = True,
        tolerance: float | None = None,
        separate: bool = False,
        micro_batches: int = 1,
        update: bool = False,
        manifest: Mapping[str, Any] | None = None,
        rank: int = 0,
        force: bool = False,
    ) -> None:
        if every < 1 or gram_every < 0:
            raise BadInput(f"wanted every >= 1 and gram_every >= 0; got every={every}, gram_every={gram_every}")
        if out is not None and writer is not None:
            raise BadInput("give Probe either out or writer, not both")
        self.model, self.optimizer, self.rank = model, optimizer, rank
        self.every, self.gram_every, self.layers, self.separate = every, gram_every, layers, separate
        self.tolerance, self.update, self.micro_batches = tolerance, update, micro_batches
        self.certificate: Certificate | None = None
        self._certify = certify
        self._owns = writer is None and out is not None
        self.writer = TraceWriter(out, dict(manifest or {}), rank=rank, force=force) if out is not None else writer
        self._claimed: dict[nn.Module, Kind] = {}
        self._layers: dict[str, Layer] = {}
        self.rows: list[Row] = []
        self._fresh: list[Row] = []
        self._steps: dict[int, Row] = {}
        self._recording: Recording | None = None
        self._given: dict[str, Any] = {}
        self._armed = self._in_parts = self._random = False
        self._said: set[str] = set()
        self._written: dict[str, Any] = {}
        self._arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._changes = Changes(model)

    @property
    def recording(self) -> bool:
        """Whether a step is being recorded right now."""
        return self._recording is not None

    def records(self, step: int) -> bool:
        """Whether the schedule records this step."""
        return step % self.every == 0

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        why = None if error is None else f"{type(error).__name__}: {error}"
        self.close("closed" if why is None else "stopped", why)

    def close(self, status: str = "closed", reason: str | None = None) -> None:
        """Write what is pending; closes the trace if the probe made it."""
        if status == "closed":
            self._say_what_is_missing()
        self.flush()
        if self.writer is not None and self._owns:
            self.writer.close(status, reason)

    @contextmanager
    def step(
        self,
        step: int,
        pair_ids: Sequence[str] | None = None,
        learning_rate: float | None = None,
        measure: bool = False,
    ) -> Iterator[Probe]:
        """Around one forward and backward over ``2B`` rows; does nothing on steps that are not recorded.

        Args:
            step: optimizer step; several micro-batches may share it.
            pair_ids: ``batch.ids``.
            learning_rate: η of the predictions (default: the optimizer's).
            measure: measure in steps that are not recorded too, since the update itself needs the norms.
        """
        self._armed = self.records(step)
        if not (self._armed or measure):
            yield self
            return
        if self._recording is not None:
            raise BadInput("probe.step cannot be entered twice at once")
        if step not in self._steps:
            self._say_what_is_missing()
            self.flush()
        scheduled = self.gram_every > 0 and step % self.gram_every == 0
        full = scheduled and not distributed()
        self._in_parts = scheduled and (distributed() or self.micro_batches > 1)
        unused = all(p.grad is None for p in trained_parameters(self.model).values())
        clean = full and unused and not self.separate
        hold, self._given = self.update or self._in_parts, {}
        try:
            with Recording(self.model, full, self.separate, self._claimed, hold) as recording:
                self._recording = recording
                yield self
                if not self._given:
                    raise BadInput("probe.step was left without a call of probe.pairs(logps, …) in it")
                products = recording.result()
                self._check(products)
                self._random |= recording.capture.random
                self._arithmetic = partial(computing_in, recording.capture.around, recording.capture.anchor.device.type)
                if self.records(step):
                    self._take(step, pair_ids, learning_rate, products, clean)
        finally:
            self._recording = None
            self._given = {}

    def pairs(
        self,
        logps: Tensor,
        reference: Tensor | None = None,
        lengths: Tensor | None = None,
        losses: Tensor | None = None,
        loss_scale: float = 1.0,
        predict: bool = True,
        **columns: Tensor,
    ) -> None:
        """Tell the probe about the batch: inside ``probe.step``, before the backward.

        Args:
            logps: ``[2B]`` sequence log-probabilities (nats), the very tensor that the loss is computed from.
            reference: ``[2B]`` reference log-probabilities.
            lengths: ``[2B]`` response lengths in tokens.
            losses: ``[B]`` loss of each pair.
            loss_scale: factor between the loss that is backpropagated and the mean over the ``B`` pairs
                (``1 / accumulation steps``, a gradient scaler's scale).
            predict: write cases and predicted changes. False where ``logps`` are other rows than the responses' own
                log-probabilities, say masked ones (give those as columns ``logp_chosen``, ``logp_rejected`` then);
                not together with ``update``.
            columns: ``[B]`` further columns of the ``pairs`` table (``gate``, ``rho``, …).
        """
        if self._recording is None:
            return
        self._recording.watch(logps)
        if self.update and not predict:
            raise BadInput(
                "Probe(update=True) follows the responses' own log-probabilities, and with predict=False the rows are "
                "others; write update=False"
            )
        half = logps.shape[0] // 2
        for name, value, size in (
            ("reference", reference, 2 * half),
            ("lengths", lengths, 2 * half),
            ("losses", losses, half),
        ):
            if value is not None and value.shape != (size,):
                raise BadInput(f"probe.pairs wants {name} of shape [{size}]; got {list(value.shape)}")
        self._given = {
            "logps": _numbers(logps),
            "reference": None if reference is None else _numbers(reference),
            "lengths": None if lengths is None else _numbers(lengths),
            "losses": None if losses is None else _numbers(losses),
            "scale": loss_scale,
            "predict": predict,
            "columns": {name: _numbers(value) for name, value in columns.items()},
        }
        if self._certify and self.certificate is None:
            self._given["plain"] = self._plain(logps)

    def measure(self, logps: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        """In place of ``pairs``, where the update depends on the norms: measure now, ``backward`` follows.

        Args:
            given: as for ``pairs``.

        Returns:
            ``(‖g_w‖, ‖g_l‖)``, ``[B]`` each.
        """
        if self._recording is None:
            raise BadInput("probe.measure belongs inside probe.step(..., measure=True)")
        self.pairs(logps, **given)
        entries = torch.stack(list(self._recording.measure().pair_entries().values())).sum(0).clamp(min=0).sqrt()
        return entries[:, 0].to(logps.device), entries[:, 1].to(logps.device)

    def backward(self, coefficients: Tensor, **columns: Tensor) -> None:
        """After ``measure``: give the parameters the gradient ``Σ_i c_i g_i``, without another backward.

        Args:
            coefficients: ``[2B]`` ``∂loss/∂(row log-probability)``.
            columns: ``[B]`` further columns of the ``pairs`` table.
        """
        if self._recording is None or not self._given:
            raise BadInput("probe.backward wants probe.measure before it, in the same step")
        self._recording.reweight(coefficients)
        self._given["columns"] |= {name: _numbers(value) for name, value in columns.items()}

    def _plain(self, logps: Tensor) -> dict[str, Tensor] | None:
        """The first pair by plain autograd, where the model allows it; the manifest says so where it does not."""
        assert self._recording is not None
        sharded = any(hasattr(p, "placements") for p in trained_parameters(self.model).values())
        reentrant = self._recording.reentrant
        if sharded or (reentrant and distributed()):
            why = "parameters are sharded" if sharded else "reentrant gradient checkpointing in several processes"
            self._certify = False
            self._manifest(certificate={"skipped": f"{why}; run a step without it to certify"})
            return None
        with self._recording.quiet():
            return plain_products(self.model, logps[0], logps[logps.shape[0] // 2], reentrant)

    def _check(self, products: Products) -> None:
        plain = self._given.get("plain")
        if plain is None:
            return
        autocast = self._recording is not None and self._recording.capture.autocast
        tolerance = self.tolerance if self.tolerance is not None else tolerance_for(self.model, autocast)
        first = {name: value[0] for name, value in products.pair_entries().items()}
        certificate = compare(first, plain, tolerance)
        self._manifest(certificate=certificate.as_manifest())
        certificate.require()  # one that fails is not kept: the next step is checked again
        self.certificate = certificate

    def _manifest(self, **fields: Any) -> None:
        """Fields of ``run.json``, written where they are new."""
        if self.writer is not None and self.rank == 0 and not fields.items() <= self._written.items():
            self._written |= fields
            self.writer.update_manifest(**fields)

    def _say_what_is_missing(self) -> None:
        if self._changes.without_gradient:
            self._manifest(batch_delta=NO_GRADIENT)

    def _rate(self, learning_rate: float | None) -> float | None:
        if learning_rate is not None or self.optimizer is None:
            return learning_rate
        return float(self.optimizer.param_groups[0]["lr"])

    def _take(
        self,
        step: int,
        pair_ids: Sequence[str] | None,
        learning_rate: float | None,
        products: Products,
        clean: bool,
    ) -> None:
        given, rate = self._given, self._rate(learning_rate)
        columns = pair_columns(given, products, rate)
        size = len(columns["logp_chosen"])
        ids = list(pair_ids) if pair_ids is not None else [f"{step}-{self.rank}-{i}" for i in range(size)]
        if len(ids) != size:
            raise BadInput(f"probe.step wants one pair id for each of the {size} pairs; got {len(ids)}")
        rows = pair_rows(step, self.rank, ids, columns)
        self._fresh += rows
        held = self._recording.held() if self._recording is not None else None
        self._changes.hold(rows, held, rate if self._in_parts and given["predict"] else None, self.update)
        self._write_layers(step, ids, products)
        self._add_to_step(step, rows, rate, products, clean)

    def _write_layers(self, step: int, ids: Sequence[str], products: Products) -> None:
        if not self.layers or self.writer is None:
            return
        entries = products.pair_entries()
        if not self._layers and self._recording is not None:
            self._layers = layers_of(list(entries), self._recording.capture.uses)
        self.writer.add("layers", layer_rows(step, ids, sum_layers(entries, self._layers)))

    def _add_to_step(self, step: int, rows: list[Row], rate: float | None, products: Products, clean: bool) -> None:
        first = step not in self._steps or "separate_rows" not in self._steps[step]
        record: Row = {"step": step, "rank": self.rank, "learning_rate": rate, "separate_rows": 0} | self._steps.get(
            step, {}
        )
        record["separate_rows"] += 2 * int(products.separate.sum())
        gram = products.gram
        if gram is not None and clean and first and not distributed():
            record["law1_error"] = law_one_error(self.model, gram, products.coefficients)
        self._steps[step] = record

    def log(self, step: int, **fields: Any) -> None:
        """Add columns of the ``steps`` table to a step (loss, grad_norm, grad_norm_clipped, …), recorded or not."""
        self._steps.setdefault(step, {"step": step, "rank": self.rank}).update(fields)

    @torch.no_grad()
    def evaluate(self, batch: PairBatch) -> Tensor:
        """``[2B]`` log-probabilities in eval mode, without gradients; modes and random state are left as they were."""
        with eval_mode(self.model):
            return sequence_logps(self.model, batch)

    def before_update(self) -> None:
        """After the step's last backward, before gradients are clipped and ``optimizer.step()``: fill ``batch_delta_*``
        where the step's batch is more than one recorded forward (several processes, micro-batches).

        The parameters' ``.grad`` must hold the gradient of the mean loss over the whole batch: averaged over processes
        (DDP and FSDP2 do that), summed over micro-batches, unscaled. Where parameters are split over processes, all of
        them must call.
        """
        self._changes.along_gradient()

    def after_update(self, batch: PairBatch | None = None, before: Tensor | None = None) -> None:
        """After ``optimizer.step()``: evaluate the step's pairs again and fill ``realised_delta_*``.

        Args:
            batch: the pairs; without it only ``update_delta_*`` are filled, which need no forward.
            before: ``probe.evaluate(batch)`` from before the update; wanted where ``draws_random_numbers``.

        Raises:
            BadInput: the training forward drew random numbers, and ``before`` is missing.
        """
        self._changes.along_update()
        if batch is None:
            return
        wanted = without_realised(self._fresh if self._armed else [])
        if not any(i in wanted for i in batch.ids):
            return
        if before is None and self._random:
            raise BadInput(
                "after_update cannot compare with the training forward's log-probabilities: it drew random numbers "
                "(dropout); call before = probe.evaluate(batch) before optimizer.step(), then "
                "probe.after_update(batch, before)"
            )
        self._said.add(REALISED[before is not None])
        self._manifest(realised_change="; ".join(sorted(self._said)))
        with self._arithmetic() if before is None else nullcontext():
            after = _numbers(self.evaluate(batch))
        fill_realised(wanted, batch, None if before is None else _numbers(before), after)

    @property
    def draws_random_numbers(self) -> bool:
        """Whether a recorded forward of the step in progress drew random numbers (dropout): its log-probabilities are
        then no baseline for the realised change. Take ``before = probe.evaluate(batch)`` before the update."""
        return self._random

    @property
    def fresh(self) -> list[Row]:
        """Rows of the step in progress, not yet handed to the writer."""
        return self._fresh

    def flush(self) -> None:
        """Hand the rows of the steps done so far to the writer."""
        self._changes.drop()
        if self._fresh:
            self.rows = self._fresh
        for step, record in self._steps.items():
            record.update(
                {k: v for k, v in step_means([r for r in self._fresh if r["step"] == step]).items() if k not in record}
            )
        if self.writer is not None:
            self.writer.add("pairs", self._fresh)
            self.writer.add("steps", list(self._steps.values()))
        self._fresh, self._steps, self._random = [], {}, False


def _numbers(values: Tensor) -> Any:
    """Values as a float64 array on the CPU."""
    return values.detach().double().cpu().numpy()
