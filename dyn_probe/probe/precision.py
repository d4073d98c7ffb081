"""How exact the recorded numbers are where gradients are computed in half precision: one pair again in float64.

float64 because autocast leaves it as it is, wherever in the forward it is entered. Norms and rotary angles that a model
computes in float32 whatever its weights are stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dyn_probe.engine.arithmetic import HALF
from dyn_probe.engine.module_copy import copy_size, eval_mode, pass_size, weights_in
from dyn_probe.engine.passes import measured
from dyn_probe.engine.uses import Call, is_split
from dyn_probe.pairs import PairBatch, trimmed
from dyn_probe.probe.evaluation import Evaluation
from dyn_probe.probe.free_memory import free_memory
from dyn_probe.probe.given import numbers
from dyn_probe.probe.run_rows import RunRows
from dyn_probe.probe.trace_rows import BatchRecord

EXACT = torch.float64
ROOM = 0.5
"""Share of the free memory that the copy of the weights may take."""
AS_RECORDED = "the first pair of a step as it was recorded, and again with the weights in float64, in eval mode"
IN_EVAL_MODE = (
    "the first pair of a step in eval mode, since the training draws random numbers: in the training's arithmetic, and "
    "with the weights in float64"
)


@dataclass
class Held:
    """Counts of gradient entries over all uses that a training computes in a half-precision type.

    Args:
        types: name of a use → the type of its output in the training.
        coefficients: ``[2]`` of chosen and rejected, by which the training multiplies the gradient of a
            log-probability.
    """

    types: Mapping[str, torch.dtype]
    coefficients: Tensor
    counts: list[Tensor] = field(default_factory=list)

    def take(self, call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Count one use's output gradients ``[2, positions, features]``."""
        dtype = self.types.get(call.use.name)
        if dtype is None:
            return
        limits = torch.finfo(dtype)
        for grad in grads:
            if grad is not None and grad.is_floating_point():
                rows = call.layout.by_response(grad).double()
                size = (rows * self.coefficients.to(rows.device).view(-1, *[1] * (rows.dim() - 1))).abs()
                counted = (size > 0, (size > 0) & (size < limits.smallest_normal), size > limits.max)
                self.counts.append(torch.stack([which.sum() for which in counted]))

    def shares(self) -> dict[str, float]:
        """Of the entries that are not 0: those below the smallest normal number of the type, those above the largest;
        empty where all are 0."""
        entries, below, above = torch.stack(self.counts).sum(0).tolist() if self.counts else (0, 0, 0)
        return {"underflow_share": below / entries, "overflow_share": above / entries} if entries else {}


class Precision:
    """Measures the error of one pair's numbers at the first, second, fourth, eighth, … recorded step that it is asked.

    Args:
        evaluation: knows the model, and the arithmetic of the training's forward.

    ``types`` maps the types of what the model's uses gave in the last recorded forward to these uses' names.
    """

    def __init__(self, evaluation: Evaluation, rows: RunRows) -> None:
        self.evaluation, self.rows = evaluation, rows
        self.types: Mapping[torch.dtype, set[str]] = {}
        self._asked = 0
        self._noted: dict[str, Any] = {}

    @property
    def half(self) -> dict[str, torch.dtype]:
        """Uses that compute in half precision, and in which type."""
        return {name: dtype for dtype in HALF for name in self.types.get(dtype, ())}

    def measure(self, step: int, batch: PairBatch) -> None:
        """Fill in the step's errors, where it is this step's turn. What cannot be measured is said in ``run.json``; the
        training goes on."""
        if not (half := self.half):
            return
        self._asked += 1
        if self._asked & (self._asked - 1):
            return
        names = ", ".join(str(d).removeprefix("torch.") for d in HALF if d in half.values())
        why = self._why_not(batch)
        if not why:
            try:
                why = self._measure(step, batch, half)
            except Exception as error:  # whatever a model in another type may raise
                why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        how = IN_EVAL_MODE if self.evaluation.random else AS_RECORDED
        self._note({"type": names, **({"skipped": why} if why else {"method": how})})

    def _why_not(self, batch: PairBatch) -> str:
        """Why the model cannot be computed in float64 here."""
        model = self.evaluation.own
        if is_split(model):
            return "parameters are split over processes"
        kinds = {p.dtype for p in model.parameters()}
        if any(not d.is_floating_point or d.itemsize < 2 for d in kinds):
            return "the weights are quantised"
        device = next(model.parameters()).device
        if device.type == "mps":
            return "the device has no float64"
        positions = int(trimmed(batch.select([0])).input_ids.numel())
        need, free = copy_size(model, EXACT) + pass_size(model, positions, EXACT), free_memory(device)
        if free is not None and need > ROOM * free:
            return f"a pair in float64 takes {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
        return ""

    def _measure(self, step: int, batch: PairBatch, half: Mapping[str, torch.dtype]) -> str:
        record, place = self._recorded(step, batch.ids[0])
        if record is None or not record.predicts or record.coefficients is None:
            return "the recorded rows are not the responses' own log-probabilities"
        pair, model = trimmed(batch.select([0])), self.evaluation.own
        c = record.coefficients[[place, place + len(record)]]
        held = Held(half, c)
        device = pair.input_ids.device
        inside = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(inside), eval_mode(model):
            given = self._in_training(model, pair) if self.evaluation.random else _of(record, place)
            with weights_in(model, EXACT), torch.autocast(device.type, enabled=False):
                answers, logps, capture, graph = measured(model, pair, False, held.take)
        if left := {str(d) for d in (*capture.dtypes, *graph.dtypes) if d in HALF}:
            return f"parts of the model compute in {', '.join(sorted(left))} whatever its weights are"
        exact = _numbers(torch.stack(list(answers.values())).sum(0)[0], logps)
        self.rows.step(step).update({**held.shares(), **_errors(given, exact)})
        return ""

    def _in_training(self, model: nn.Module, pair: PairBatch) -> np.ndarray:
        with self.evaluation.arithmetic():
            answers, logps, _, _ = measured(model, pair, False)
        return _numbers(torch.stack(list(answers.values())).sum(0)[0], logps)

    def _recorded(self, step: int, pair: str) -> tuple[BatchRecord | None, int]:
        """The record of the step that has the pair, and its place there."""
        for record in self.rows.batches:
            if record.step == step and pair in record.ids:
                return record, list(record.ids).index(pair)
        return None, 0

    def _note(self, note: dict[str, Any]) -> None:
        if note != self._noted:
            self._noted = note
            self.rows.manifest(precision=note)


def _numbers(entries: Tensor, logps: Tensor) -> np.ndarray:
    """``‖g_w‖, ‖g_l‖, ⟨g_w,g_l⟩, a, b`` of one pair."""
    first = numbers(entries)
    return np.array([*np.sqrt(np.maximum(first[:2], 0.0)), first[2], *numbers(logps)])


def _of(record: BatchRecord, place: int) -> np.ndarray:
    """The same as they were recorded."""
    names = ("grad_norm_chosen", "grad_norm_rejected", "grad_inner", "logp_chosen", "logp_rejected")
    return np.array([float(record.columns[name][place]) for name in names])


def _errors(given: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """The errors of one pair's numbers (``_numbers``); empty where they are not finite, or a gradient is 0."""
    scale = exact[0] * exact[1]
    if not (np.isfinite(given).all() and np.isfinite(exact).all() and scale > 0 and given[0] * given[1] > 0):
        return {}
    cosine = given[2] / (given[0] * given[1]) - exact[2] / scale
    return {
        "norm_error": float(np.max(np.abs(given[:2] / exact[:2] - 1))),
        "inner_error": float(abs(given[2] - exact[2]) / scale),
        "cosine_error": float(abs(cosine)),
        "logp_error": float(np.max(np.abs(given[3:] - exact[3:]))),
    }
