"""Rows of the trace's tables from what a recording found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from dyn_probe import entanglement
from dyn_probe.engine.answer import Products
from dyn_probe.engine.layers import Layer
from dyn_probe.errors import BadInput
from dyn_probe.metric.previous import KNOWN_BEFORE
from dyn_probe.metric.pushes import Pushes
from dyn_probe.probe.given import Given, numbers
from dyn_probe.trace.schema import SCORED

Row = dict[str, Any]
Columns = dict[str, Sequence[Any] | np.ndarray]


PREDICTED = (
    *(f"{name}_{side}" for name in ("predicted_delta", "batch_delta") for side in ("chosen", "rejected")),
    "case_plain",
    "band_slack",
    "band_slack_metric",
)
OF_PULLS = ("pull_chosen", "pull_rejected", *PREDICTED)
"""Columns that say something of one pull on the whole response: null where a row's tokens are pulled differently."""
OF_GRADIENTS = ("grad_norm_chosen", "grad_norm_rejected", "grad_inner", "grad_cosine", *PREDICTED)
"""Columns that say something of a pair's gradients: null where these are lost."""


@dataclass(eq=False)
class BatchRecord:
    """One recorded batch: its columns of the ``pairs`` table, ``[B]`` each."""

    step: int
    rank: int
    ids: Sequence[str]
    columns: dict[str, Any]
    known: dict[str, np.ndarray] = field(default_factory=dict)
    """Column → which of its rows have a value, where that is not all of them."""
    rate: float | None = None
    coefficients: Tensor | None = None
    """``[2B]`` ``∂loss/∂(row log-probability)`` as it was backpropagated, loss scale and all."""

    @staticmethod
    def of(
        step: int,
        rank: int,
        ids: Sequence[str],
        given: Given,
        products: Products,
        rate: float | None,
        whole: bool,
    ) -> BatchRecord:
        """What the loop gave and the recording found.

        Args:
            ids: the pairs' ids.
            rate: η of the predictions; None leaves them out.
            whole: whether the batch is all that the optimizer's step is made of.
        """
        without = ((OF_PULLS, products.unequal.numpy()), (OF_GRADIENTS, products.lost))
        known: dict[str, np.ndarray] = {}
        for names, pairs in without:
            if pairs.any():
                known |= {name: ~pairs & known.get(name, True) for name in names}
        columns = pair_columns(given, products, rate, whole)
        return BatchRecord(step, rank, ids, columns, known, rate, products.coefficients)

    @property
    def predicts(self) -> bool:
        """Whether the rows are the responses' own log-probabilities, so that their changes are predicted."""
        return "case_plain" in self.columns

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, i: int) -> Row:
        """One pair's row, without the columns that it has no value in."""
        there = (n for n in self.columns if n not in self.known or self.known[n][i])
        return {
            "step": self.step,
            "pair_id": self.ids[i],
            "rank": self.rank,
            **{n: _item(self.columns[n][i]) for n in there},
        }

    def rows(self) -> list[Row]:
        """All pairs' rows."""
        return [self.row(i) for i in range(len(self))]

    def fill(self, side_columns: str, values: np.ndarray) -> None:
        """``values [2B]`` as the columns ``…_chosen`` and ``…_rejected``."""
        half = len(self)
        self.columns |= {f"{side_columns}_chosen": values[:half], f"{side_columns}_rejected": values[half:]}

    def add_update(self, total: np.ndarray, entries: np.ndarray | None) -> None:
        """The optimizer's step has been made.

        Args:
            total: ``[2B]`` ``⟨g_i, Δθ⟩``.
            entries: ``[B, 3]`` ``⟨g_w, ωP g_w⟩``, ``⟨g_l, ωP g_l⟩``, ``⟨g_w, ωP g_l⟩``, where the step was taken apart.
        """
        half = len(self)
        self.fill("update_delta", total)
        self.columns["case_update"] = entanglement.cases(total[:half], total[half:])
        if entries is not None:
            chosen, rejected = np.sqrt(np.maximum(entries[:, :2], 0.0)).T
            slack = entanglement.band_slack(
                self.columns["pull_chosen"], self.columns["pull_rejected"], chosen, rejected, entries[:, 2]
            )
            self.columns["band_slack_metric"] = slack

    def put(self, name: str, i: int, value: float) -> None:
        """One row's value of a column that other rows may lack."""
        values = self.columns.setdefault(name, np.full(len(self), np.nan))
        self.known.setdefault(name, np.zeros(len(self), dtype=bool))[i] = True
        values[i] = value

    def has(self, name: str, i: int) -> bool:
        """Whether row ``i`` has a value of the column."""
        return name in self.columns and (name not in self.known or bool(self.known[name][i]))


def ids_of(step: int, rank: int, ids: Sequence[str] | None, pairs: int) -> list[str]:
    """The pairs' ids as they were given; numbers where there are none.

    Raises:
        BadInput: not one id for each pair.
    """
    found = [f"{step}-{rank}-{i}" for i in range(pairs)] if ids is None else list(ids)
    if len(found) != pairs:
        raise BadInput(f"probe.step wants one pair id for each of the {pairs} pairs; got {len(found)}")
    return found


def layer_columns(step: int, ids: Sequence[str], layers: Mapping[Layer, np.ndarray], lost: np.ndarray) -> Columns:
    """Columns of the ``layers`` table, one layer after another, from ``[B, 3]`` per layer; no rows of pairs that are
    ``lost``."""
    there = np.flatnonzero(~lost).tolist()
    values = np.concatenate([found[there] for found in layers.values()])
    chosen, rejected = np.sqrt(np.maximum(values[:, :2], 0.0)).T
    return {
        "step": [step] * len(values),
        "pair_id": [ids[i] for i in there] * len(layers),
        "layer": [layer.label for layer in layers for _ in there],
        "depth": [layer.depth for layer in layers for _ in there],
        "grad_norm_chosen": chosen,
        "grad_norm_rejected": rejected,
        "grad_inner": np.ascontiguousarray(values[:, 2]),
    }


def pair_columns(given: Given, products: Products, rate: float | None, whole: bool = True) -> dict[str, Any]:
    """Columns of the ``pairs`` table, ``[B]`` each, from what the loop gave and what the recording found.

    Args:
        rate: η of the predictions; None leaves them out.
        whole: whether the batch is all that the optimizer's step is made of.
    """
    half = len(given.logps) // 2
    entries = products.entries.sum(0).numpy()
    norm_w, norm_l = np.sqrt(np.maximum(entries[:, 0], 0)), np.sqrt(np.maximum(entries[:, 1], 0))
    pull = products.coefficients.numpy() * half / given.scale
    d_w, d_l = -pull[:half], pull[half:]
    up, down = entanglement.predicted_delta(d_w, d_l, norm_w, norm_l, entries[:, 2], 1.0 if rate is None else rate)
    columns: dict[str, Any] = {
        "pull_chosen": d_w,
        "pull_rejected": d_l,
        "grad_norm_chosen": norm_w,
        "grad_norm_rejected": norm_l,
        "grad_inner": entries[:, 2],
        "grad_cosine": entanglement.cosine(norm_w, norm_l, entries[:, 2]),
        "case_plain": entanglement.cases(up, down),
        "band_slack": entanglement.band_slack(d_w, d_l, norm_w, norm_l, entries[:, 2]),
        "separate_backward": products.separate,
        **told_columns(given),
    }
    if not given.predict:
        del columns["case_plain"], columns["band_slack"]
    elif rate is not None:
        columns |= {"predicted_delta_chosen": up, "predicted_delta_rejected": down}
        if products.gram is not None and whole and given.scale == 1.0 and not products.unequal.any():
            sides = entanglement.batch_delta(products.gram.numpy(), d_w, d_l, rate)
            columns |= dict(zip(("batch_delta_chosen", "batch_delta_rejected"), sides, strict=True))
    return columns


def outlined(step: int, rank: int, ids: Sequence[str], given: Given) -> list[Row]:
    """Rows of the ``scores`` table."""
    columns = {name: values for name, values in told_columns(given).items() if name in SCORED}
    return [
        {"step": step, "pair_id": pair, "rank": rank} | {name: _item(values[i]) for name, values in columns.items()}
        for i, pair in enumerate(ids)
    ]


def told_columns(given: Given) -> dict[str, Any]:
    """Columns of the ``pairs`` table that the loop said itself."""
    half = len(given.logps) // 2
    columns: dict[str, Any] = {"logp_chosen": given.logps[:half], "logp_rejected": given.logps[half:], **given.columns}
    for name, values in (("ref_logp", given.reference), ("len", given.lengths)):
        if values is not None:
            columns |= {f"{name}_chosen": values[:half], f"{name}_rejected": values[half:]}
    return columns if given.losses is None else {**columns, "loss": given.losses}


PUSHES = ("own_chosen", "own_rejected", "others", "all_chosen", "all_rejected", "past", "decay", "rounding", "total")
"""Columns of the ``pushes`` table that are pushes."""


def push_rows(record: BatchRecord, pushes: Pushes) -> list[Row]:
    """Rows of the ``pushes`` table: one per pair and side."""
    found = {name: getattr(pushes, name) for name in PUSHES}
    columns = {name: numbers(values) for name, values in found.items() if values is not None}
    return [
        {"step": record.step, "pair_id": pair, "rank": record.rank, "side": side, "metric": "applied"}
        | {name: float(values[i + k * len(record)]) for name, values in columns.items()}
        for i, pair in enumerate(record.ids)
        for k, side in enumerate(("chosen", "rejected"))
    ]


def known_rows(step: int, rank: int, ids: Sequence[str], parts: Tensor, undefined: Tensor) -> list[Row]:
    """Rows of the ``pushes`` table of what was known before a step, in the metric of the one before it.

    Args:
        parts: ``[4, 2B]`` ``KNOWN_BEFORE``.
        undefined: ``[B]`` pairs that have no rows here: those with a row whose tokens are pulled differently, or whose
            gradients are lost.
    """
    values = numbers(parts)
    return [
        {"step": step, "pair_id": pair, "rank": rank, "side": side, "metric": "previous"}
        | {name: float(values[j, i + k * len(ids)]) for j, name in enumerate(KNOWN_BEFORE)}
        for i, pair in enumerate(ids)
        if not undefined[i]
        for k, side in enumerate(("chosen", "rejected"))
    ]


def gram_rows(record: BatchRecord, gram: Tensor, metric: Tensor | None = None) -> list[Row]:
    """The row of the ``grams`` table: ``K`` and, where the step was taken apart, ``K`` in its metric."""
    row: Row = {"step": record.step, "rank": record.rank, "pair_ids": list(record.ids)}
    row["gram"] = numbers(gram).ravel().tolist()
    return [row if metric is None else row | {"gram_metric": numbers(metric).ravel().tolist()}]


def _item(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
