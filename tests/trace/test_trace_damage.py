"""A flipped bit is never read as another number: it is named, and what is whole is read."""

from __future__ import annotations

import random
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trace_samples import as_values, plain_column, recorded_steps, sample_rows, step_rows

from dyn_probe.errors import TraceError
from dyn_probe.report.verdicts.status import damaged
from dyn_probe.trace import parquet
from dyn_probe.trace.messages import batch_at, message_end
from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.trace.schema import PAIRS, TABLES
from dyn_probe.trace.writer import TraceWriter

ROWS = 30
FLIPS = 300


def record(run: Path, table: str = "pairs", close: bool = True) -> list[dict[str, Any]]:
    """A trace of one table in several batches or row groups; returns its rows."""
    rows = sample_rows(TABLES[table], ROWS)
    writer = TraceWriter(run, {}, flush_seconds=3600.0, flush_rows=10)
    for start in range(0, ROWS, 10):
        writer.add(table, rows[start : start + 10])
        writer.flush()
    writer.close() if close else writer._buffer.close()
    return rows


@pytest.fixture(scope="module", params=["pairs.parquet", "tokens.parquet", "pairs stream", "tokens stream"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, Any]]:
    """A recorded trace: (file, table, rows)."""
    run, table = tmp_path_factory.mktemp("whole") / "run", request.param[:6].strip(".s ") + "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_GROUP_ROWS", 10)
        rows = record(run, table, close=request.param.endswith("parquet"))
        file = run / (request.param if request.param.endswith("parquet") else f"streams/{table}-rank0.arrow")
        yield file, table, rows


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def told(run: Path, table: str, **wanted: Any) -> tuple[Trace, pd.DataFrame, list[str]]:
    """The trace, the table, and what was said while it was read."""
    trace = load_trace(run, **wanted)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = trace.table(table)
    return trace, frame, [str(one.message) for one in caught]


def rows_told(run: Path, table: str) -> tuple[Trace, list[dict[str, Any]], list[str]]:
    """The same with the table's rows."""
    trace, frame, said = told(run, table)
    return trace, as_values(frame[list(TABLES[table].names)]), said


def is_part(found: pd.DataFrame, whole: pd.DataFrame) -> bool:
    """Whether the rows that were found are rows of the whole, unchanged."""
    kept = whole[whole["step"].isin(found["step"])].reset_index(drop=True)
    lists = [name for name in kept if kept[name].dtype == object]
    return kept.drop(columns=lists).equals(found.drop(columns=lists)) and all(
        plain_column(kept[name]) == plain_column(found[name]) for name in lists
    )


def test_no_flipped_bit_is_read_as_another_number(whole: tuple[Path, str, list[dict[str, Any]]]) -> None:
    file, table, rows = whole
    run = file.parent.parent if file.parent.name == "streams" else file.parent
    content, seen = file.read_bytes(), Counter[str]()
    _, original, nothing = told(run, table)
    assert as_values(original[list(TABLES[table].names)]) == rows and nothing == []
    for bit in random.Random(0).sample(range(8 * len(content)), FLIPS):
        file.write_bytes(flipped(content, bit))
        try:
            trace, found, said = told(run, table)
        except TraceError as error:
            assert file.name in str(error), f"bit {bit}: {error}"
            seen["refused"] += 1
            continue
        assert is_part(found, original), f"bit {bit}"
        about = trace._table(table)[0].about
        missing, counts = len(rows) - len(found), [one.rows for one in about.damage]
        assert len(said) == len(counts) and (said or about.torn), f"bit {bit} was not noticed"
        if missing and not about.torn and None not in counts:
            assert sum(counts) == missing, f"bit {bit}: {said}"
        seen["cut off" if about.torn else "unknown" if None in counts else "missing" if missing else "all"] += 1
    file.write_bytes(content)
    assert seen["missing"] > FLIPS / 10 and seen["cut off"] + seen["unknown"] < FLIPS / 3, seen


def test_without_the_checks_many_are(whole: tuple[Path, str, list[dict[str, Any]]]) -> None:
    """The flips of the test above do change numbers: Arrow alone reads them without a word."""
    file, _, rows = whole
    content, silent = file.read_bytes(), 0
    for bit in random.Random(0).sample(range(8 * len(content)), FLIPS):
        try:
            source = pa.BufferReader(flipped(content, bit))
            data = pq.read_table(source) if file.suffix == ".parquet" else pa.ipc.open_stream(source).read_all()
            data.validate(full=True)
            found = data.to_pylist()
        except Exception:
            continue
        silent += found != rows
    assert silent > FLIPS / 20


@pytest.mark.parametrize("wanted", [{"columns": ["step", "loss", "pair_id"]}, {"steps": range(20)}], ids=str)
def test_a_part_of_a_damaged_file_is_as_safe(
    tmp_path: Path, wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 10)
    record(tmp_path / "run")
    _, original, _ = told(tmp_path / "run", "pairs", **wanted)
    file = tmp_path / "run/pairs.parquet"
    content, noticed = file.read_bytes(), 0
    for bit in random.Random(1).sample(range(8 * len(content)), FLIPS):
        file.write_bytes(flipped(content, bit))
        try:
            _, found, said = told(tmp_path / "run", "pairs", **wanted)
        except TraceError:
            noticed += 1
            continue
        assert is_part(found, original), f"bit {bit}"
        assert len(found) == len(original) or said, f"bit {bit} was not noticed"
        noticed += bool(said)
    assert noticed > FLIPS / 4


def test_headers_of_pages_are_covered(tmp_path: Path) -> None:
    """The format's checksums cover pages, not their headers: of these too, no bit may be flipped without a word."""
    with TraceWriter(tmp_path / "run", {}) as writer:
        writer.add("pairs", [{"step": step, "loss": None if step % 3 else 0.5 * step} for step in range(9)])
    file = tmp_path / "run/pairs.parquet"
    chunk = pq.read_metadata(file).row_group(0).column(PAIRS.names.index("loss"))
    content, start = file.read_bytes(), chunk.dictionary_page_offset or chunk.data_page_offset
    rows = pq.read_table(file, columns=["loss"])
    unnoticed = 0
    for bit in range(8 * start, 8 * (start + chunk.total_compressed_size)):
        file.write_bytes(flipped(content, bit))
        found = parquet.read_parquet(file, TABLES["pairs"], ["loss"])
        assert found.damage and len(found.data) == 0, f"bit {bit}"
        try:
            unnoticed += pq.read_table(file, columns=["loss"], page_checksum_verification=True) != rows
        except OSError:
            continue
    assert unnoticed  # by the format's own


def test_a_damaged_row_group_is_named_by_number_column_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 10)
    rows = record(tmp_path / "run")
    file = tmp_path / "run/pairs.parquet"
    chunk = pq.read_metadata(file).row_group(1).column(PAIRS.names.index("loss"))
    place = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size - 3
    content = file.read_bytes()
    file.write_bytes(flipped(content, 8 * place))
    trace, found, [said] = rows_told(tmp_path / "run", "pairs")
    assert found == rows[:10] + rows[20:]
    named = re.search(
        r"pairs\.parquet: row group 2 of 3, column loss \(bytes (\d+) to (\d+)\), is damaged; 10 rows are missing", said
    )
    assert named and int(named[1]) <= place <= int(named[2])
    [verdict] = damaged(trace)
    assert verdict.level == "warning" and [number.value for number in verdict.numbers] == [1, 10]
    file.write_bytes(content)
    assert damaged(load_trace(tmp_path / "run")) == []


def test_a_damaged_batch_is_named_by_its_bytes(tmp_path: Path) -> None:
    rows = record(tmp_path / "run", close=False)
    file = tmp_path / "run/streams/pairs-rank0.arrow"
    content = file.read_bytes()
    first = message_end(content, 0)
    assert first
    second = batch_at(content, batch_at(content, first).end)
    for place in (second.end - 1, second.start + 100):  # in the body, in its description
        file.write_bytes(flipped(content, 8 * place))
        trace, found, [said] = rows_told(tmp_path / "run", "pairs")
        assert found == rows[:10] + rows[20:] and trace.torn == []
        assert f"{second.start} to {second.end - 1}" in said and "10 rows are missing" in said


def test_a_stream_whose_head_is_damaged_is_read_by_todays_schema(tmp_path: Path) -> None:
    rows = record(tmp_path / "run", close=False)
    file = tmp_path / "run/streams/pairs-rank0.arrow"
    content = file.read_bytes()
    end = message_end(content, 0)
    for change in (flipped(content, 8 * (end - 100)), content[:50] + content[90:], content[end:]):
        file.write_bytes(change)
        _, found, [said] = rows_told(tmp_path / "run", "pairs")
        assert found == rows and "its head" in said and "no row is missing" in said
    file.write_bytes(content.replace(b"head:", b"head;"))
    _, found, said = rows_told(tmp_path / "run", "pairs")
    assert found == [] and said


def test_a_damaged_stream_stays_when_it_is_merged_and_is_still_spoken_of(tmp_path: Path) -> None:
    run = tmp_path / "run"
    rows = record(run, close=False)
    file = run / "streams/pairs-rank0.arrow"
    second = batch_at(file.read_bytes(), message_end(file.read_bytes(), 0)).end
    file.write_bytes(flipped(file.read_bytes(), 8 * (second + 200)))
    content = file.read_bytes()
    TraceWriter(run, {}, resume=True).close()
    trace, found, [said] = rows_told(run, "pairs")
    assert found == rows[:10] + rows[20:] and "pairs-rank0.arrow" in said and "10 rows are missing" in said
    assert file.read_bytes() == content and [one.rows for one in trace.damage] == [10]


def test_a_damaged_file_is_kept_when_the_trace_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 10)
    run = tmp_path / "run"
    record(run)
    file = run / "pairs.parquet"
    chunk = pq.read_metadata(file).row_group(1).column(0)
    file.write_bytes(flipped(file.read_bytes(), 8 * (chunk.data_page_offset + 40)))
    content = file.read_bytes()
    with TraceWriter(run, {}, resume=True) as writer:
        writer.add("pairs", step_rows(30))
    _, found, [said] = rows_told(run, "pairs")
    assert [row["step"] for row in found] == [*range(10), *range(20, 31)] and "10 rows are missing" in said
    assert (run / "pairs.parquet.damaged").read_bytes() == content


def test_a_file_that_was_exchanged_is_spoken_of_and_read(tmp_path: Path) -> None:
    for name, steps in (("run", (0, 1)), ("other", (5, 6, 7))):
        with TraceWriter(tmp_path / name, {}) as writer:
            writer.add("pairs", step_rows(*steps))
    shutil.copy(tmp_path / "other/pairs.parquet", tmp_path / "run")
    _, found, [said] = rows_told(tmp_path / "run", "pairs")
    assert [row["step"] for row in found] == [5, 6, 7] and "changed or replaced after the run was closed" in said
    assert told(tmp_path / "run", "pairs", columns=["pairs.loss"])[2] == []  # a part is not held against the digest


def test_a_file_that_a_resume_is_about_to_replace_is_not_called_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dyn_probe.trace import merge

    run = tmp_path / "run"
    with TraceWriter(run, {}) as writer:
        writer.add("pairs", step_rows(0))
    was_changed, happened = merge._was_changed, []

    def overtaken(*arguments: Any) -> bool:
        if not happened:
            happened.append(1)
            with TraceWriter(run, {}, resume=True) as writer:
                writer.add("pairs", step_rows(1))
        return was_changed(*arguments)

    monkeypatch.setattr(merge, "_was_changed", overtaken)
    assert told(run, "pairs")[2] == [] and recorded_steps(run) == [0, 1] and happened


def test_run_json_names_size_rows_and_digest_of_every_file(tmp_path: Path) -> None:
    import hashlib

    run = tmp_path / "run"
    with TraceWriter(run, {}) as writer:
        for table in TABLES.values():
            writer.add(table.name, sample_rows(table, 7))
    files = load_trace(run).about.files
    assert set(files) == {f"{name}.parquet" for name in TABLES}
    for name, check in files.items():
        content = (run / name).read_bytes()
        assert (check.rows, check.bytes) == (7, len(content))
        assert check.sha256 == hashlib.sha256(content).hexdigest()


def test_pages_carry_the_formats_own_checksums(tmp_path: Path) -> None:
    """Whoever reads the file with another library can have them verified."""
    record(tmp_path / "run")
    file = tmp_path / "run/pairs.parquet"
    chunk = pq.read_metadata(file).row_group(0).column(PAIRS.names.index("loss"))
    content = flipped(file.read_bytes(), 8 * (chunk.data_page_offset + chunk.total_compressed_size - 20))
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    assert pq.read_table(file, page_checksum_verification=True).num_rows == ROWS


def test_a_stream_is_an_ordinary_one_to_others(tmp_path: Path) -> None:
    rows = record(tmp_path / "run", close=False)
    with pa.ipc.open_stream(tmp_path / "run/streams/pairs-rank0.arrow") as stream:
        data = stream.read_all()
    assert data.to_pylist() == rows and data.num_rows == ROWS
