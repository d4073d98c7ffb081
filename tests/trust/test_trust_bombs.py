"""Traces that declare, or unpack to, far more than their bytes hold are refused in words before memory is taken."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from trust import bombs, door_trace

from dyn_probe.errors import TraceError
from dyn_probe.trace import damage
from dyn_probe.trace.arrow_rows import arrow_schema, misfit, row_size
from dyn_probe.trace.messages import batch_message, head_crc, head_message, is_compressed
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.schema import PAIRS, TABLES

WORDS = {
    "parquet: rows of one value": r"pairs\.parquet: 1,048,576 rows would take .* GiB of memory, and .* are free",
    "parquet: a text that unpacks": r"pairs\.parquet: its (largest row group|texts) would take",
    "parquet: one long text in many rows": r"pairs\.parquet: its texts would take",
    "parquet: a list that unpacks": r"pairs\.parquet: 1 rows would take",
    "parquet: a footer in a file of 64 GiB": r"its footer has 4,294,967,295 bytes, at most 268,435,456 are read",
    "stream: buffers that unpack": r"the batch at byte \d+ is compressed, which no recorder writes",
    "stream: a compressed buffer of 2⁴⁰ bytes": r"the batch at byte \d+ is compressed, which no recorder writes",
    "stream: rows without bytes": r"does not fit table 'pairs': column rank is missing",
    "stream, sealed: rows without bytes": r"does not fit table 'pairs': column rank is missing",
    "stream: a run of one value": r"no recorder writes columns of these types: step \(run_end_encoded",
    "stream: lists of nothing": r"columns of these types: step \(fixed_size_list",
    "stream: one long text in many rows": r"columns of these types: pair_id \(dictionary",
    "stream, sealed: views of one long text": r"columns of these types: pair_id \(string_view",
    "stream: deep types": r"columns of these types: logp_chosen \(list<item: list",
    "stream: a file of 64 GiB": r"pairs-rank0\.arrow would take 64\.0 GiB of memory",
    "run.json: a file of 64 GiB": r"run\.json has 68,719,476,736 bytes, at most 67,108,864 are read",
    "run.json: nested a million times": r"run\.json cannot be read as JSON",
    "run.json: ten million digits": r"run\.json cannot be read as JSON",
}
FREE = 2**25


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bombs of some megabytes, and a process that has no more to take."""
    monkeypatch.setattr(bombs, "LARGE", 2**26)
    monkeypatch.setattr(bombs, "ROWS", 2**20)
    monkeypatch.setattr(damage, "free_memory", lambda: FREE)
    monkeypatch.setattr(damage, "SMALL", 0)


@pytest.mark.parametrize("kind", [*WORDS, "stream, sealed: buffers that unpack"])
def test_it_is_refused_in_words(kind: str, small: None, tmp_path: Path) -> None:
    bombs.bombs()[kind](tmp_path / "run")
    before = pa.total_allocated_bytes()
    if kind not in WORDS:
        with pytest.warns(RuntimeWarning, match="is damaged; 1 row is missing|is damaged; .* rows are missing"):
            assert len(load_trace(tmp_path / "run").pairs) == 0
    else:
        with pytest.raises(TraceError, match=WORDS[kind]) as raised:
            _ = load_trace(tmp_path / "run").pairs
        assert str(raised.value).isprintable() and len(str(raised.value)) < 600
    assert pa.total_allocated_bytes() - before < FREE


def test_all_kinds_are_tried() -> None:
    assert set(bombs.bombs()) == {*WORDS, *bombs.DAMAGED}


@pytest.mark.parametrize("table", TABLES)
def test_what_a_recorder_writes_is_no_misfit(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace of a few rows is read where 16 MiB are free, and has the values that were written."""
    assert misfit(TABLES[table], arrow_schema(TABLES[table])) == ""
    run = door_trace.base(tmp_path / "run")
    monkeypatch.setattr(damage, "free_memory", lambda: FREE)
    monkeypatch.setattr(damage, "SMALL", 0)
    rows = load_trace(run).arrow(table).to_pylist()
    assert len(rows) and all(row[c.name] is not None for row in rows for c in TABLES[table].columns)


def test_texts_come_back_as_they_were(tmp_path: Path) -> None:
    """They are read as dictionaries, in lists too."""
    texts = ["", "a" * 3000, "ü", "a", None]
    batch = bombs._batch(pair_id=pa.array(texts), step=np.arange(5, dtype=np.int64))
    bombs.parquet(batch, 3)(tmp_path / "run")
    found = load_trace(tmp_path / "run").arrow("pairs")
    assert found["pair_id"].to_pylist() == [text for text in texts for _ in range(3)]
    assert found.schema.field("pair_id").type == pa.string()


def test_what_rows_take_is_no_less_than_they_take() -> None:
    schema = arrow_schema(PAIRS)
    filled = pa.table([pa.array([None] * 1000, one.type) for one in schema], names=schema.names)
    frame = filled.to_pandas()
    assert 1000 * row_size(schema) >= filled.nbytes
    assert 1000 * row_size(schema) >= 0.5 * frame.memory_usage(index=False).sum()


@pytest.mark.parametrize("codec", [None, "zstd", "lz4"])
@pytest.mark.parametrize("table", ["pairs", "tokens", "examples"])
def test_compressed_batches_are_told_from_others(
    table: str, codec: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = arrow_schema(TABLES[table])
    batch = pa.RecordBatch.from_arrays([pa.nulls(9, one.type) for one in schema], names=schema.names)
    head = head_message(batch.schema)
    real, options = pa.ipc.new_stream, pa.ipc.IpcWriteOptions(compression=codec)
    monkeypatch.setattr(pa.ipc, "new_stream", lambda *given: real(*given, options=options))
    assert is_compressed(batch_message(batch, 0, head_crc(head) or b""), 0) == (codec is not None)


def test_metadata_that_end_too_soon_are_no_answer() -> None:
    batch = bombs._batch()
    whole = batch_message(batch, 0, b"0" * 8)
    for cut in range(9, 40):
        with pytest.raises(ValueError, match="point beyond their end"):
            is_compressed(whole[:cut], 0)


def test_the_memory_that_is_free_knows_the_limit_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    wide = damage.free_memory()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**50, 2**50))
    assert wide is not None and 0 < wide < 2**50
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (0, 0))
    assert damage.free_memory() == 0
    with pytest.raises(
        TraceError, match=re.escape("x would take 0.1 GiB of memory, and 0.0 GiB are free; read a part")
    ):
        damage.refuse_large("x", damage.SMALL + 1)
    damage.refuse_large("x", damage.SMALL)  # what is free is not known to so little


def test_pages_of_files_are_no_memory_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that has read large files stands near its limit, and gives their pages back when asked."""
    monkeypatch.setattr(damage, "CONTAINER", tmp_path)
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**30 - 4096}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2**28}\ninactive_file {2**29}\nactive_file 8192\nshmem 5\n")
    assert damage.free_memory() == 4096 + 2**29 + 8192
    (tmp_path / "memory.max").write_text("max\n")
    assert (damage.free_memory() or 0) > 2**29  # no limit: what the system has
