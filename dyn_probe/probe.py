"""``Probe``: records every preference pair of a training loop, from its own backward, without changing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.capture.uses import Kind, Layer, layers_of, trained_parameters
from dyn_probe.certify import Certificate, compare, plain_products, tolerance_for
from dyn_probe.errors import BadInput
from dyn_probe.gram.api import sum_layers
from dyn_probe.pairs import PairBatch, sequence_logps
from dyn_probe.recording import Held, Products, Recording, distributed, dropout_on
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
        update: also record ``update_delta_*``, the first-order change under the optimizer's real update (METHODS §8);
            it keeps a copy of the trained parameters and the batch's activations until ``after_update``.
        manifest: entries of ``run.json``.
        rank: this process's number.
        force: replace an existing trace at ``out``.
        strict: stop where the trace cannot be written (full disk, file-size limit); else that is said once.
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
        update: bool = False,
        manifest: Mapping[str, Any] | None = None,
        rank: int = 0,
        force: bool = False,
        strict: bool = False,
    ) -> None:
        if every < 1 or gram_every < 0:
            raise BadInput(f"wanted every >= 1 and gram_every >= 0; got every={every}, gram_every={gram_every}")
        if out is not None and writer is not None:
            raise BadInput("give Probe either out or writer, not both")
        self.model, self.optimizer, self.rank = model, optimizer, rank
        self.every, self.gram_every, self.layers, self.separate = every, gram_every, layers, separate
        self.tolerance, self.update = tolerance, update
        self.certificate: Certificate | None = None
        self._certify = certify
        self._owns = writer is None and out is not None
        self.writer = writer if out is None else TraceWriter(out, manifest or {}, rank=rank, force=force, strict=strict)
        self._claimed: dict[nn.Module, Kind] = {}
        self._layers: dict[str, Layer] = {}
        self.rows: list[Row] = []
        self._fresh: list[Row] = []
        self._steps: dict[int, Row] = {}
        self._recording: Recording | None = None
        self._given: dict[str, Any] = {}
        self._armed = False
        self._before: dict[str, Tensor] = {}
        self._held: list[tuple[list[Row], Held]] = []

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
        try:
            self.flush()
        finally:
            if self.writer is not None and self._owns:
                self.writer.end(error, f"{type(error).__name__}: {error}")

    def close(self, status: str = "closed", reason: str | None = None) -> None:
        """Write what is pending; closes the trace if the probe made it."""
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
            self.flush()
        full = self.gram_every > 0 and step % self.gram_every == 0 and not distributed()
        unused = all(p.grad is None for p in trained_parameters(self.model).values())
        clean = full and unused and not self.separate
        self._given = {}
        try:
            with Recording(self.model, full, self.separate, self._claimed, self.update) as recording:
                self._recording = recording
                yield self
                if not self._given:
                    raise BadInput("probe.step was left without a call of probe.pairs(logps, …) in it")
                products = recording.result()
                self._check(products)
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
        self.certificate = compare(first, plain, tolerance)
        self._manifest(certificate=self.certificate.as_manifest())
        self.certificate.require()

    def _manifest(self, **fields: Any) -> None:
        if self.writer is not None and self.rank == 0:
            self.writer.update_manifest(**fields)

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
        self._hold(rows)
        self._write_layers(step, ids, products)
        self._add_to_step(step, rows, rate, products, clean)

    def _hold(self, rows: list[Row]) -> None:
        """Keep what ``after_update`` needs for the change under the optimizer's own update."""
        held = self._recording.held() if self.update and self._recording is not None else None
        if held is None:
            return
        if not self._held:
            self._before = {n: p.detach().clone() for n, p in trained_parameters(self.model).items()}
        self._held.append((rows, held))

    def _fill_update(self) -> None:
        """``update_delta_*`` of the rows that are held, once the parameters have moved."""
        moved = (
            {n: p.detach() - self._before[n] for n, p in trained_parameters(self.model).items()} if self._held else {}
        )
        for rows, held in self._held:
            change = held.along(moved).tolist()
            for i, row in enumerate(rows):
                row["update_delta_chosen"], row["update_delta_rejected"] = change[i], change[i + len(rows)]
        self._held, self._before = [], {}

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
            record["law1_error"] = self._law_one(gram, products.coefficients)
        self._steps[step] = record

    def _law_one(self, gram: Tensor, coefficients: Tensor) -> float:
        """``|cᵀKc − ‖∇loss‖²| / ‖∇loss‖²`` (METHODS law 1); call it before anything touches the gradients."""
        grads = [p.grad for p in trained_parameters(self.model).values() if p.grad is not None]
        sizes = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in grads]
        total = sum(float(size) ** 2 for size in sizes)
        predicted = float(coefficients @ gram @ coefficients)
        return abs(predicted - total) / total if total > 0 else abs(predicted)

    def log(self, step: int, **fields: Any) -> None:
        """Add columns of the ``steps`` table to a step (loss, grad_norm, grad_norm_clipped, …), recorded or not."""
        self._steps.setdefault(step, {"step": step, "rank": self.rank}).update(fields)

    @torch.no_grad()
    def evaluate(self, batch: PairBatch) -> Tensor:
        """``[2B]`` log-probabilities in eval mode, without gradients; modes and random state are left as they were."""
        modes = [(m, m.training) for m in self.model.modules()]
        try:
            self.model.eval()
            return sequence_logps(self.model, batch)
        finally:
            for module, training in modes:
                module.training = training

    def after_update(self, batch: PairBatch | None = None, before: Tensor | None = None) -> None:
        """After ``optimizer.step()``: evaluate the step's pairs again and fill ``realised_delta_*``.

        Args:
            batch: the pairs; without it only ``update_delta_*`` are filled, which need no forward.
            before: ``probe.evaluate(batch)`` from before the update; wanted where dropout is on, since the training
                forward's log-probabilities are then those of another, random model.
        """
        self._fill_update()
        if batch is None:
            return
        wanted: dict[str, list[Row]] = {}
        for row in self._fresh if self._armed else ():
            if "realised_delta_chosen" not in row:
                wanted.setdefault(row["pair_id"], []).append(row)
        if not any(i in wanted for i in batch.ids):
            return
        if before is None and dropout_on(self.model):
            raise BadInput(
                "after_update cannot compare with log-probabilities taken under dropout; call "
                "before = probe.evaluate(batch) before optimizer.step(), then probe.after_update(batch, before)"
            )
        after = _numbers(self.evaluate(batch))
        old = None if before is None else _numbers(before)
        for i, pair in enumerate(batch.ids):
            if rows := wanted.get(pair):
                row = rows.pop(0)
                for side, j in (("chosen", i), ("rejected", i + batch.pairs)):
                    start = row[f"logp_{side}"] if old is None else old[j]
                    row[f"realised_delta_{side}"] = float(after[j] - start)

    @property
    def fresh(self) -> list[Row]:
        """Rows of the step in progress, not yet handed to the writer."""
        return self._fresh

    def flush(self) -> None:
        """Hand the rows of the steps done so far to the writer."""
        self._held, self._before = [], {}
        if self._fresh:
            self.rows = self._fresh
        for step, record in self._steps.items():
            record.update(
                {k: v for k, v in step_means([r for r in self._fresh if r["step"] == step]).items() if k not in record}
            )
        if self.writer is not None:
            self.writer.add("pairs", self._fresh)
            self.writer.add("steps", list(self._steps.values()))
        self._fresh, self._steps = [], {}


def _numbers(values: Tensor) -> Any:
    """Values as a float64 array on the CPU."""
    return values.detach().double().cpu().numpy()
