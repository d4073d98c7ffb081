"""What a probe has recorded: the steps in progress, what goes to the trace, and what is kept to be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dyn_probe import entanglement
from dyn_probe.engine.answer import Products
from dyn_probe.engine.fetching import fetching
from dyn_probe.engine.layers import Layer, layers_of, sum_layers
from dyn_probe.engine.uses import Use
from dyn_probe.probe.given import Told
from dyn_probe.probe.row_store import Row, RowStore
from dyn_probe.probe.step_rows import step_means
from dyn_probe.probe.trace_rows import BatchRecord, ids_of, layer_columns, outlined
from dyn_probe.trace.schema import UNDEFINED
from dyn_probe.trace.writer import TraceWriter

FIRST = "realised_delta_chosen"
REALISED = {
    False: "a forward in eval mode after the update minus the recorded forward before it, which drew no random numbers",
    True: "a forward in eval mode (no dropout) after the update minus one in eval mode before it",
}
"""What ``realised_delta_*`` compares: whether the log-probabilities before the update were evaluated separately."""


class RunRows:
    """Rows of one process on their way to the trace.

    Args:
        writer: None keeps rows only.
        rank: this process's number.
        keep: keep all rows until this is dropped; False those of the step in progress alone.
    """

    def __init__(self, writer: TraceWriter | None, rank: int, keep: bool = True) -> None:
        self.writer, self.rank = writer, rank
        self._batches: list[BatchRecord] = []
        self._arriving: list[Callable[[], None]] = []
        self._due: int | None = None
        self._outlined: list[Row] = []
        self.floor: float | None = None
        """Change (nats) of a log-probability that numerics alone can make."""
        self._steps: dict[int, Row] = {}
        self._named: Sequence[str] = ()
        self._layers: list[Layer] = []
        """Of the parameters that are ``_named``."""
        self._realised: set[bool] = set()
        self._store = RowStore(keep)

    def holds(self, step: int) -> bool:
        """Whether the step is one of those in progress."""
        return step in self._steps

    def later(self, step: int, finish: Callable[[], None]) -> None:
        """A batch of this step whose numbers are still on their way: ``finish`` adds it, before anything is read."""
        self._flush_due()
        self.step(step)
        self._arriving.append(finish)

    def outline(self, step: int, ids: Sequence[str] | None, told: Told) -> None:
        """A batch that is not recorded: what the loop said of it is kept all the same."""
        self._flush_due()
        self.step(step)
        ids, given = ids_of(step, self.rank, ids, told.pairs), told.fetching()
        self._arriving.append(lambda: self._outlined.extend(outlined(step, self.rank, ids, given())))

    @property
    def taken(self) -> int:
        """Batches of the steps in progress whose numbers have arrived."""
        return len(self._batches)

    @property
    def batches(self) -> list[BatchRecord]:
        """Batches of the steps in progress."""
        self._wait()
        return self._batches

    def _wait(self) -> None:
        """For all numbers that are on their way."""
        self._flush_due()
        while self._arriving:
            self._arriving.pop(0)()

    def add(self, record: BatchRecord, products: Products, uses: Sequence[Use] | None = None) -> None:
        """A batch and what it adds to its step.

        Args:
            uses: the model's, where its layers are recorded too.
        """
        self._flush_due()
        self._batches.append(record)
        if uses is not None and self.writer is not None:
            if products.names != self._named:
                self._named, self._layers = products.names, list(layers_of(products.names, uses).values())
            found = sum_layers(products.entries.numpy(), self._layers)
            self.writer.add_columns("layers", layer_columns(record.step, record.ids, found, products.lost))
        row = self.step(record.step)
        row.setdefault("learning_rate", record.rate)
        for name, pairs in (("separate_rows", products.separate), ("lost_rows", products.lost)):
            row[name] = row.get(name, 0) + 2 * int(pairs.sum())

    def write(self, table: str, rows: Sequence[Row]) -> None:
        """Rows of another table, at once."""
        if self.writer is not None and rows:
            self.writer.add(table, rows)

    def step(self, step: int) -> Row:
        """The step's row of the ``steps`` table, to be completed."""
        return self._steps.setdefault(step, {"step": step, "rank": self.rank})

    def log(self, step: int, fields: Mapping[str, Any]) -> None:
        """Columns of the step's row; tensors of one number are fetched without waiting for them."""
        row, tensors = self.step(step), {n: value for n, value in fields.items() if isinstance(value, Tensor)}
        row.update({name: value for name, value in fields.items() if name not in tensors})
        if tensors:
            fetched = fetching([value.detach() for value in tensors.values()])
            self._arriving.append(lambda: row.update({n: v.item() for n, v in zip(tensors, fetched(), strict=True)}))

    def manifest(self, **fields: Any) -> None:
        """Entries of ``run.json``; those of the first process count."""
        if self.writer is not None and self.rank == 0:
            self.writer.update_manifest(**fields)

    def unrealised(self, ids: Sequence[str]) -> bool:
        """Whether any of these pairs has a row that waits for its realised change."""
        return any(pair in ids and not b.has(FIRST, i) for b in self.batches for i, pair in enumerate(b.ids))

    def realise(self, ids: Sequence[str], after: np.ndarray, before: np.ndarray | None) -> None:
        """The realised change of the rows that wait for it.

        Args:
            ids: the pairs that were evaluated again.
            after, before: their log-probabilities ``[2B]``; ``before`` None: those that were recorded.
        """
        waiting: dict[str, list[tuple[BatchRecord, int]]] = {}
        for record in self.batches:
            for i, pair in enumerate(record.ids):
                if not record.has(FIRST, i):
                    waiting.setdefault(pair, []).append((record, i))
        for k, pair in enumerate(ids):
            if rows := waiting.get(pair):
                record, i = rows.pop(0)
                changes = []
                for side, j in (("chosen", k), ("rejected", k + len(ids))):
                    start = record.columns[f"logp_{side}"][i] if before is None else before[j]
                    changes.append(float(after[j] - start))
                    record.put(f"realised_delta_{side}", i, changes[-1])
                if min(map(abs, changes)) > (self.floor or 0.0):
                    record.put("case_realised", i, int(entanglement.cases(*changes)))
        if (how := before is not None) not in self._realised:
            self._realised.add(how)
            self.manifest(realised_change="; ".join(sorted(REALISED[one] for one in self._realised)))

    def begin(self, step: int) -> None:
        """A step begins: those before it are handed to the writer when anything is asked or added, which in a step that
        only records is after its backward, so that the device need not stop between two steps."""
        self._due = step

    def _flush_due(self) -> None:
        if self._due is not None:
            self.flush(self._due)

    @property
    def fresh(self) -> list[Row]:
        """Rows of the steps in progress, not yet handed to the writer."""
        return [row for record in self.batches for row in record.rows()]

    @property
    def scored(self) -> list[Row]:
        """Rows of batches of the steps in progress that are not recorded."""
        self._wait()
        return self._outlined

    @property
    def all(self) -> RowStore:
        """All rows that are kept."""
        self._store.pending = self.fresh
        return self._store

    def flush(self, but: int = -1) -> None:
        """Hand the rows of the steps done so far to the writer.

        Args:
            but: a step that has only begun: what is known of it waits.
        """
        self._due = None
        begun = self._steps.pop(but, None)
        rows = self.all.pending
        for step, record in self._steps.items():
            means = step_means([r for r in (*rows, *self._outlined) if r["step"] == step])
            record.update({name: value for name, value in means.items() if name not in record})
            own = (r for r in (record, *rows, *self._outlined) if r["step"] == step)
            if bad := sum(map(not_finite, own)):
                record["not_finite"] = record.get("not_finite", 0) + bad
        self.write("pairs", rows)
        self.write("scores", self._outlined)
        self.write("steps", list(self._steps.values()))
        self._store.settle()
        self._batches, self._outlined = [], []
        self._steps = {} if begun is None else {but: begun}


def not_finite(row: Row) -> int:
    """How many numbers of a row are NaN or infinite, though they are defined."""
    return sum(
        isinstance(value, float) and not math.isfinite(value) and name not in UNDEFINED for name, value in row.items()
    )
