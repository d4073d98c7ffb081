"""Traces that an earlier version recorded, kept as files, are read, summarised, reported and gone on with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markupsafe import escape
from trace_samples import as_values

from dyn_probe import load_trace
from dyn_probe.report.build import build_report
from dyn_probe.report.ranked import ranked_pairs
from dyn_probe.report.summary import summary_lines
from dyn_probe.report.verdicts.data_read import left_out
from dyn_probe.report.verdicts.mass_went import gated
from dyn_probe.report.verdicts.status import certificate
from dyn_probe.trace.writer import TraceWriter

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CLOSED, KILLED = FIXTURES / "old_trace", FIXTURES / "old_streams"
ROWS = {"pairs": 6, "steps": 3, "layers": 24, "tokens": 6, "mass": 30, "distributions": 24, "examples": 5}
ROWS_KILLED = {"pairs": 4, "steps": 2, "layers": 16, "tokens": 3, "mass": 20, "distributions": 12, "examples": 5}
"""Table → its rows, as the version that recorded them counted them."""

each_trace = pytest.mark.parametrize("run", [CLOSED, KILLED], ids=["closed", "killed"])


def as_stored(run: Path, table: str) -> list[dict[str, Any]]:
    """The rows as Arrow alone reads the file."""
    if run == CLOSED:
        return pq.read_table(run / f"{table}.parquet").to_pylist()
    with pa.ipc.open_stream(run / "streams" / f"{table}-rank0.arrow") as stream:
        return stream.read_all().to_pylist()


@each_trace
def test_every_number_is_read_as_it_was_stored(run: Path) -> None:
    trace, counts = load_trace(run), ROWS if run == CLOSED else ROWS_KILLED
    assert {name: len(trace.table(name)) for name in counts} == counts
    assert trace.closed is (run == CLOSED) and trace.torn == []
    for name in counts:
        stored = as_stored(run, name)
        assert stored and as_values(trace.table(name)[list(stored[0])]) == stored
    assert trace.pairs["case_plain"].equals(trace.pairs["case"]) and trace.pairs["case_plain"].notna().all()


@each_trace
@pytest.mark.usefixtures("unrendered")
def test_it_is_summarised_ranked_and_reported(run: Path, tmp_path: Path) -> None:
    trace = load_trace(run)
    said = "\n".join(summary_lines(trace))
    held = "4 pairs, 6 rows" if run == CLOSED else "4 pairs, 4 rows"
    assert all(text in said for text in ("pairs.jsonl", "gate-seq", "adadpo", held))
    ranked = ranked_pairs(trace)
    assert set(ranked["pair_id"]) == set(trace.pairs["pair_id"])
    assert [one.level for one in (*certificate(trace), *left_out(trace))] == ["ok", "note"]
    page = build_report([run], out=tmp_path / "report").read_text(encoding="utf-8")
    assert all(str(escape(text)) in page for text in ("gate-seq", "chosen empty", *ranked["prompt"]))
    assert len(gated(trace)) == (run == CLOSED)  # its figures are written when the run ends


@each_trace
def test_it_can_be_gone_on_with(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    before = as_stored(run, "pairs")
    with TraceWriter(folder, {}, resume=True, resume_step=9) as writer:
        writer.add("pairs", [{"step": 9, "pair_id": "new"}])
    pairs = load_trace(folder).pairs
    assert as_values(pairs[list(before[0])])[:-1] == before
    assert (pairs["step"].iloc[-1], pairs["pair_id"].iloc[-1]) == (9, "new")
