"""Changes of the pairs' log-probabilities that are known later than their gradients: along the step's whole gradient,
once every process and micro-batch has added to it; along the update, once the optimizer has made it; as realised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.capture.uses import trained_parameters
from dyn_probe.pairs import PairBatch
from dyn_probe.recording import Held
from dyn_probe.rows import Row

REALISED = {
    False: "a forward in eval mode after the update minus the recorded forward before it, which drew no random numbers",
    True: "a forward in eval mode (no dropout) after the update minus one in eval mode before it",
}
"""What ``realised_delta_*`` compares, by whether the log-probabilities before the update were evaluated apart."""

NO_GRADIENT = (
    "not recorded: the step's batch is more than one recorded forward (several processes, or micro-batches), and "
    "probe.before_update() was not called between the last backward and optimizer.step()"
)
"""Why ``batch_delta_*`` is empty."""


@dataclass(eq=False)
class _Waiting:
    """Rows of the ``pairs`` table, their gradients, and what they wait for: ``rate`` is η of the gradient step."""

    rows: list[Row]
    held: Held
    rate: float | None
    update: bool


class Changes:
    """Fills ``batch_delta_*`` and ``update_delta_*`` of rows that were recorded before."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._waiting: list[_Waiting] = []
        self._before: dict[str, Tensor] = {}
        self._missed = False

    def hold(self, rows: list[Row], held: Held | None, rate: float | None, update: bool) -> None:
        """Keep what is needed until the change is known.

        Args:
            held: the rows' gradients, ``[chosen; rejected]``; None keeps nothing.
            rate: η, for the change along the gradient; None leaves it out.
            update: whether the change along the update is wanted; the parameters are copied.
        """
        if held is None or (rate is None and not update):
            return
        if update and not self._before:
            self._before = {n: p.detach().clone() for n, p in trained_parameters(self.model).items()}
        self._waiting.append(_Waiting(rows, held, rate, update))

    @property
    def without_gradient(self) -> bool:
        """Whether rows wait, or waited in vain, for the step's gradient."""
        return self._missed or any(waiting.rate is not None for waiting in self._waiting)

    def along_gradient(self) -> None:
        """``batch_delta_*``: −η⟨g_i, G⟩ with G as it stands in the parameters' ``.grad``."""
        waiting = [one for one in self._waiting if one.rate is not None]
        for one, products in zip(waiting, self._products(waiting, lambda name, p: p.grad), strict=True):
            _fill(one.rows, "batch_delta", products * -(one.rate or 0.0))
            one.rate = None
        self._waiting = [one for one in self._waiting if one.update]

    def along_update(self) -> None:
        """``update_delta_*``: ⟨g_i, Δθ⟩ with Δθ as the parameters have moved since the rows were recorded."""
        waiting = [one for one in self._waiting if one.update]
        moved = self._products(waiting, lambda name, p: p.detach() - self._before[name])
        for one, products in zip(waiting, moved, strict=True):
            _fill(one.rows, "update_delta", products)
        self.drop()

    def drop(self) -> None:
        """Let go of all that is kept."""
        self._missed, self._waiting, self._before = self.without_gradient, [], {}

    def _products(
        self, waiting: Sequence[_Waiting], direction: Callable[[str, nn.Parameter], Tensor | None]
    ) -> list[Tensor]:
        """``[2B]`` of each: ⟨g_i, direction⟩, one parameter at a time. Where parameters are split over processes, each
        piece of the direction is put together for it, so that all processes must come here together."""
        totals = [torch.zeros(2 * len(one.rows), dtype=torch.float64) for one in waiting]
        for name, parameter in trained_parameters(self.model).items() if waiting else ():
            along = direction(name, parameter)
            if along is not None:
                whole = _whole(along)
                totals = [t + one.held.along({name: whole}) for t, one in zip(totals, waiting, strict=True)]
        return totals


def without_realised(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Pair id → its rows that have no realised change yet."""
    wanted: dict[str, list[Row]] = {}
    for row in rows:
        if "realised_delta_chosen" not in row:
            wanted.setdefault(row["pair_id"], []).append(row)
    return wanted


def fill_realised(wanted: Mapping[str, list[Row]], batch: PairBatch, before: Any, after: Any) -> None:
    """``realised_delta_*``, in the next row that waits for each pair of ``batch``.

    Args:
        wanted: what ``without_realised`` found.
        before: ``[2B]`` log-probabilities before the update; None takes those of the recorded forward.
        after: ``[2B]`` those after it.
    """
    for i, pair in enumerate(batch.ids):
        if rows := wanted.get(pair):
            row = rows.pop(0)
            for side, j in (("chosen", i), ("rejected", i + batch.pairs)):
                start = row[f"logp_{side}"] if before is None else before[j]
                row[f"realised_delta_{side}"] = float(after[j] - start)


def _whole(tensor: Any) -> Tensor:
    """A tensor that is split over processes (FSDP2) put together; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _fill(rows: list[Row], name: str, change: Tensor) -> None:
    """The columns ``{name}_chosen`` and ``{name}_rejected`` from ``[2B]`` changes (nats)."""
    values = change.tolist()
    for i, row in enumerate(rows):
        row[f"{name}_chosen"], row[f"{name}_rejected"] = values[i], values[i + len(rows)]
