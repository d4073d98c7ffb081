"""Read a trace: closed, still being written, killed, or half merged. Never imports torch, never unpickles."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from dyn_probe.trace.layout import read_manifest
from dyn_probe.trace.merge import Rows, collect
from dyn_probe.trace.rows import find_table
from dyn_probe.trace.schema import TABLES

# Types with their own null; float64 has NaN, and step (int64) is never null.
_PANDAS = {pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}


@dataclass(frozen=True)
class Trace:
    """A recorded run. Tables are read on first access and kept.

    Args:
        path: folder of the trace.
        manifest: ``run.json`` as it was when the trace was loaded.
    """

    path: Path
    manifest: dict[str, Any]
    _read: dict[str, tuple[Rows, pd.DataFrame]] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        return [entry for name in TABLES for entry in self._table(name)[0].torn]

    def table(self, name: str) -> pd.DataFrame:
        """The table of that name, by step and then rank; an unknown name is an error that lists them.

        Dtypes follow ``trace/schema.py``: int64, Int32 and boolean (nullable), float64 (null is NaN), string;
        list columns hold arrays. A table without rows has all its columns.
        """
        return self._table(name)[1]

    def _table(self, name: str) -> tuple[Rows, pd.DataFrame]:
        table = find_table(name)
        if name not in self._read:
            rows = collect(self.path, table)
            frame = rows.data.to_pandas(types_mapper=_PANDAS.get, ignore_metadata=True)
            self._read[name] = (rows, frame)
        return self._read[name]


def load_trace(path: str | Path) -> Trace:
    """Open a trace folder.

    A trace that is being written, or whose process was killed, is read up to its last whole batch, at most
    2 s or 200 rows behind the recorder.

    Raises:
        TraceError: there is no such folder, it is not a trace, or a newer dyn-probe wrote it.
    """
    path = Path(path)
    return Trace(path, read_manifest(path))
