"""``load_trace(columns=, steps=)``: the same rows as of the whole, and nothing else is read of the files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from trace_samples import as_values, sample_rows

from dyn_probe.errors import TraceError
from dyn_probe.trace import parquet
from dyn_probe.trace.checks import chunk_places
from dyn_probe.trace.reader import load_trace
from dyn_probe.trace.schema import TABLES
from dyn_probe.trace.writer import TraceWriter

ROWS, GROUP = 60, 10
OLDER = Path(__file__).resolve().parents[1] / "fixtures/old_trace"
STEPS = {
    "a number": (7, {7}),
    "a number of NumPy": (np.int64(7), {7}),
    "numbers": ([3, 3, 50, 999], {3, 50}),
    "an array": (np.array([1, 2]), {1, 2}),
    "a range": (range(5, 31, 5), {5, 10, 15, 20, 25, 30}),
    "a range backwards": (range(9, 6, -1), {9, 8, 7}),
    "a slice": (slice(10, 14), {10, 11, 12, 13}),
    "an open slice": (slice(57, None), {57, 58, 59}),
    "a slice with a stride": (slice(None, None, 25), {0, 25, 50}),
    "none of them": ([], set()),
}


@pytest.fixture(scope="module", params=["closed", "open"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of every table with six row groups, or in streams."""
    folder = tmp_path_factory.mktemp("selection") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_GROUP_ROWS", GROUP)
        writer = TraceWriter(folder, {}, flush_seconds=3600.0, flush_rows=GROUP)
        for table in TABLES.values():
            writer.add(table.name, sample_rows(table, ROWS))
        writer.close() if request.param == "closed" else writer._finalizer()
    return folder


@pytest.mark.parametrize(("wanted", "found"), STEPS.values(), ids=STEPS)
def test_steps_are_those_of_the_whole(run: Path, wanted: Any, found: set[int]) -> None:
    whole, part = load_trace(run), load_trace(run, steps=wanted)
    for name, table in TABLES.items():
        frame = whole.table(name)
        expected = frame[frame["step"].isin(found)] if "step" in table.names else frame
        assert as_values(part.table(name)) == as_values(expected)
    assert set(part.pairs["step"]) == found


def test_columns_are_those_of_the_whole(run: Path) -> None:
    trace = load_trace(run, columns=["pairs.loss", "case", "step", "mass.kind"], steps=range(4))
    assert list(trace.pairs) == ["step", "loss", "case_plain", "case"]
    assert list(trace.mass) == ["step", "kind"] and list(trace.steps) == ["step"]
    assert list(trace.examples) == list(TABLES["examples"].names)  # of which none was named
    whole = load_trace(run).pairs.head(4)
    assert as_values(trace.pairs) == as_values(whole[list(trace.pairs)])


def test_columns_that_order_and_tell_rows_apart_are_not_shown_for_that(run: Path) -> None:
    trace = load_trace(run, columns=["pairs.loss", "final.logp_chosen", "pushes.total"])
    assert [list(trace.table(name)) for name in ("pairs", "final", "pushes")] == [["loss"], ["logp_chosen"], ["total"]]
    for name in ("pairs", "final", "pushes"):
        assert as_values(trace.table(name)) == as_values(load_trace(run).table(name)[list(trace.table(name))])


def overwritten(run: Path, folder: Path, keep: set[tuple[int, str]]) -> Path:
    """A copy of ``pairs`` in which every chunk is noise, but for those of these row groups and columns."""
    folder.mkdir()
    (folder / "run.json").write_bytes((run / "run.json").read_bytes())
    content = bytearray((run / "pairs.parquet").read_bytes())
    about = pq.read_metadata(run / "pairs.parquet")
    places = chunk_places(about)
    for group in range(about.num_row_groups):
        for number in range(about.num_columns):
            name = about.row_group(group).column(number).path_in_schema
            if (group, name) not in keep:
                start, size = places[group * about.num_columns + number]
                content[start : start + size] = b"\xa5" * size
    (folder / "pairs.parquet").write_bytes(content)
    return folder


@pytest.mark.parametrize("run", ["closed"], indirect=True)
def test_nothing_else_is_touched(run: Path, tmp_path: Path) -> None:
    """Whatever is not asked for may as well be noise: neither its row groups nor its columns are read."""
    groups = {2, 3}
    folder = overwritten(run, tmp_path / "run", {(group, name) for group in groups for name in ("step", "loss")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part = load_trace(folder, columns=["pairs.step", "pairs.loss"], steps=slice(25, 33)).pairs
    assert as_values(part) == as_values(load_trace(run).pairs[["step", "loss"]].iloc[25:33])
    with pytest.warns(RuntimeWarning, match="pairs.parquet: row group 3 of 6, column grad_inner .* is damaged"):
        assert load_trace(folder, columns=["step", "grad_inner"], steps=25).pairs.empty
    with pytest.warns(RuntimeWarning, match="row group 5 of 6"):
        assert load_trace(folder, columns=["step", "loss"], steps=slice(25, 50)).pairs["step"].max() == 39


def test_columns_of_an_older_trace_go_by_both_names() -> None:
    whole = load_trace(OLDER).pairs
    for name in ("case", "case_plain"):
        part = load_trace(OLDER, columns=[name]).pairs
        assert list(part) == ["case_plain", "case"] and part["case"].equals(whole["case"])
    assert load_trace(OLDER, columns=["pairs.score_chosen"]).pairs["score_chosen"].isna().all()  # not known then


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        (["pairs.los"], r"no table has these columns: pairs\.los \(did you mean pairs\.loss\?\); write TABLE\.COLUMN"),
        (["grad_iner", "step"], r"grad_iner \(did you mean grad_inner\?\)"),
        (["mass.loss"], r"mass\.loss"),
        (["examples"], "no table has these columns: examples"),
        ("loss", r'wanted a list of columns; came the text \'loss\': write \["loss"\]'),
    ],
)
def test_columns_that_no_table_has_are_named(columns: Any, wanted: str) -> None:
    with pytest.raises(TraceError, match=wanted):
        load_trace(OLDER, columns=columns)


@pytest.mark.parametrize(
    "steps",
    [1.0, [1.5], "7", ["7"], slice(-5, None), slice(None, -1), slice(0, 9, -1), slice(0, 9, 0), slice("a"), [None]],
)
def test_what_are_no_steps_is_refused(steps: Any) -> None:
    with pytest.raises(TraceError, match=r"wanted steps as a whole number, .*; came .*; write steps=10"):
        load_trace(OLDER, steps=steps)
