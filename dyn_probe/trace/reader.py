"""Read a trace: closed, still being written, killed, or half merged. Never imports torch, never unpickles."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from dyn_probe.trace.arrow_rows import find_table
from dyn_probe.trace.damage import Damage, warn_of
from dyn_probe.trace.manifest import read_manifest, typed
from dyn_probe.trace.merge import TableRows, collect
from dyn_probe.trace.references import trace_folder
from dyn_probe.trace.run_fields import Manifest
from dyn_probe.trace.schema import TABLES
from dyn_probe.trace.selection import EVERYTHING, Selection, select

# Types with their own null; float64 has NaN, and step (int64) is never null.
_PANDAS = {pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}


@dataclass(frozen=True)
class Trace:
    """A recorded run. Tables are read on first access and kept.

    Args:
        path: folder of the trace.
        manifest: ``run.json`` as it was when the trace was loaded, as plain JSON values.
    """

    path: Path
    manifest: dict[str, Any]
    _selection: Selection = EVERYTHING
    _read: dict[str, tuple[TableRows, pd.DataFrame]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def about(self) -> Manifest:
        """``run.json`` with types: ``trace.about.objective.name``. What the run does not say is None or empty."""
        return typed(self.manifest)

    @property
    def closed(self) -> bool:
        """False while a process records, and where it was killed."""
        return bool(self.manifest["status"] != "recording")

    @property
    def pairs(self) -> pd.DataFrame:
        """One pair at one recorded step."""
        return self.table("pairs")

    @property
    def pushes(self) -> pd.DataFrame:
        """One response of one pair at one step that was taken apart."""
        return self.table("pushes")

    @property
    def grams(self) -> pd.DataFrame:
        """One recorded batch: the Gram of all its responses."""
        return self.table("grams")

    @property
    def scores(self) -> pd.DataFrame:
        """One pair at one step that was not recorded, where records are thinned by a budget."""
        return self.table("scores")

    @property
    def final(self) -> pd.DataFrame:
        """One pair after the last step."""
        return self.table("final")

    @property
    def steps(self) -> pd.DataFrame:
        """One optimizer step of one process."""
        return self.table("steps")

    @property
    def layers(self) -> pd.DataFrame:
        """One layer of one pair at one recorded step."""
        return self.table("layers")

    @property
    def tokens(self) -> pd.DataFrame:
        """One followed pair at one recorded step."""
        return self.table("tokens")

    @property
    def mass(self) -> pd.DataFrame:
        """One probe response at one recorded step."""
        return self.table("mass")

    @property
    def distributions(self) -> pd.DataFrame:
        """One position of a probe response at the first or the last measurement, with its next-token distribution."""
        return self.table("distributions")

    @property
    def examples(self) -> pd.DataFrame:
        """One pair of the data, as text."""
        return self.table("examples")

    @property
    def torn(self) -> list[dict[str, Any]]:
        """Streams whose last batch is not whole: ``stream``, and the ``bytes`` that were not read.

        A crash in the middle of a write leaves one; while a run is recorded, it is the batch being written.
        """
        return [asdict(entry) for name in TABLES for entry in self._table(name)[0].about.torn]

    @property
    def damage(self) -> list[Damage]:
        """Parts of files whose check failed: file, place, and how many rows are missing by it. Reading a table warns of
        each; what is whole is read."""
        return [one for name in TABLES for one in self._table(name)[0].about.damage]

    def table(self, name: str) -> pd.DataFrame:
        """The table of that name, by step and then rank; an unknown name is an error that lists them.

        Dtypes follow ``trace/schema.py``: int64, Int32 and boolean (nullable), float64 (null is NaN), string;
        list columns hold arrays. A table without rows has all its columns. Behind them stand the older names of some
        (``case`` for ``case_plain``), which hold the same.
        """
        return self._table(name)[1]

    def arrow(self, name: str) -> pa.Table:
        """The same table as Arrow, without the older names; each field's metadata has its unit and meaning."""
        return self._table(name)[0].data.select(list(self._selection.shown(find_table(name))))

    def _table(self, name: str) -> tuple[TableRows, pd.DataFrame]:
        table = find_table(name)
        if name not in self._read:
            rows = collect(self.path, table, self._selection)
            warn_of(self.path, rows.about.damage)
            shown = rows.data.select(list(self._selection.shown(table)))
            frame = shown.to_pandas(types_mapper=_PANDAS.get, ignore_metadata=True)
            older = {alias: frame[column] for alias, column in table.aliases.items() if column in frame}
            self._read[name] = (rows, frame.assign(**older))
        return self._read[name]


def load_trace(
    path: str | Path,
    columns: Iterable[str] | None = None,
    steps: slice | int | Collection[int] | None = None,
) -> Trace:
    """Open a trace folder, or a reference trace that comes with the package (``reference:NAME``).

    A trace that is being written, or whose process was killed, is read up to its last whole batch, at most
    2 s or 200 rows behind the recorder. A part of a file whose check fails is left out, with a ``RuntimeWarning`` that
    names it.

    ::

        trace = load_trace("runs/mine", columns=["pairs.step", "pairs.pair_id", "pairs.loss"], steps=slice(1000, None))

    Args:
        columns: the columns to read, as "TABLE.COLUMN", or "COLUMN" for every table that has it. A table of which
            none is named is read whole, when it is asked for.
        steps: a step, steps, a range, or a slice; the tables have only the rows of these.

    Raises:
        TraceError: there is no such folder, it is not a trace, a newer dyn-probe wrote it, or no table has a column of
            that name.
    """
    folder = trace_folder(path)
    return Trace(folder, read_manifest(folder), select(columns, steps))
