"""What goes into a trace comes out of it, and what does not fit the schema does not go in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from trace_samples import as_values, sample_rows

from dyn_probe.errors import TraceError
from dyn_probe.trace import schema
from dyn_probe.trace.docs import schema_markdown
from dyn_probe.trace.reader import Trace, load_trace
from dyn_probe.trace.schema import PAIRS, TABLES, Column, Table
from dyn_probe.trace.writer import TraceWriter

DTYPES = {"int64": "int64", "int32": "Int32", "float64": "float64", "bool": "boolean"}

each_table = pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))


@pytest.mark.parametrize("closed", [False, True], ids=["streams", "parquet"])
@each_table
def test_every_table_comes_back_as_it_went_in(tmp_path: Path, table: Table, closed: bool) -> None:
    rows = sample_rows(table, 23)
    writer = TraceWriter(tmp_path / "run", {}, flush_rows=5)
    writer.add(table.name, rows[:9])
    writer.add(table.name, rows[9:])
    writer.close() if closed else writer.flush()
    trace = load_trace(tmp_path / "run")
    assert trace.closed is closed
    assert (tmp_path / "run" / f"{table.name}.parquet").exists() is closed
    assert as_values(trace.table(table.name)[list(table.names)]) == rows
    writer.close()


@pytest.mark.parametrize("rows", [0, 3], ids=["empty", "filled"])
@each_table
def test_columns_and_dtypes_are_the_schemas(tmp_path: Path, table: Table, rows: int) -> None:
    with TraceWriter(tmp_path / "run", {}) as writer:
        writer.add(table.name, sample_rows(table, rows))
    frame = getattr(load_trace(tmp_path / "run"), table.name)
    assert tuple(frame.columns) == (*table.names, *table.aliases)
    wanted = {c.name: DTYPES[c.type] for c in table.columns if c.type in DTYPES}
    assert {name: str(frame[name].dtype) for name in wanted} == wanted
    assert len(frame) == rows


@each_table
def test_rows_and_their_columns_give_the_same(tmp_path: Path, table: Table) -> None:
    rows = sample_rows(table, 7)
    columns = {name: [row[name] for row in rows] for name in table.names}
    as_arrays = {c.name: np.array(columns[c.name]) for c in table.columns if c.required and c.type in DTYPES}
    for number, given in enumerate((columns, columns | as_arrays)):
        with TraceWriter(tmp_path / str(number), {}) as writer:
            writer.add_columns(table.name, given)
        assert as_values(load_trace(tmp_path / str(number)).table(table.name)[list(table.names)]) == rows


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"step": [0, 1], "loss": [0.5]}, "as many values in every column; got step: 2, loss: 1"),
        ({"step": [0, 1], "loss": 0.5}, "step: 2, loss: no sequence"),
        ({"step": np.array(3)}, "step: no sequence"),
        ({"step": [0, 1], "lost": [0.5, 0.5]}, r"'lost' does not exist \(in 2 of 2 rows\)"),
        ({"step": [0, None]}, "'step': wanted a value in every row, got none in row 1"),
        ({"step": [0, 1], "loss": ["a", 0.5]}, "'loss': wanted float64, got 'a'"),
        ({"step": np.array([0.5, 1.0])}, "'step': wanted int64, got"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, columns: dict[str, object], complaint: str) -> None:
    with TraceWriter(tmp_path / "run", {}) as writer, pytest.raises(TraceError, match=complaint):
        writer.add_columns("steps", columns)  # type: ignore[arg-type]
    assert not len(load_trace(tmp_path / "run").steps)


def test_a_table_is_read_once(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run", {}) as writer:
        writer.add("pairs", [{"step": 0}])
    trace = load_trace(tmp_path / "run")
    assert trace.pairs is trace.table("pairs")
    with pytest.raises(AttributeError):
        trace.path = tmp_path  # type: ignore[misc]


@each_table
def test_a_column_that_the_schema_lacks_is_refused(tmp_path: Path, table: Table) -> None:
    with TraceWriter(tmp_path / "run", {}) as writer:
        good = sample_rows(table, 2)
        with pytest.raises(TraceError, match="'novel' does not exist") as raised:
            writer.add(table.name, [*good, {**good[0], "novel": 1}])
        assert all(name in str(raised.value) for name in table.names)
    assert load_trace(tmp_path / "run").table(table.name).empty  # all of the rows, or none


def test_everything_wrong_is_listed_at_once(tmp_path: Path) -> None:
    rows = [{"step": 0, "grad_iner": 1.0}, {"loss": "high", "case_plain": 2**40}, {"step": 1, "unheard": 1}]
    with TraceWriter(tmp_path / "run", {}) as writer, pytest.raises(TraceError) as raised:
        writer.add("pairs", rows)
    message = str(raised.value)
    assert "'grad_iner' does not exist (in 1 of 3 rows); did you mean 'grad_inner'?" in message
    assert "'unheard' does not exist" in message
    assert "'loss': wanted float64, got 'high' (str) in row 1" in message
    assert "'step': wanted a value in every row, got none in row 1" in message
    assert "'case_plain': wanted int32" in message


WRONG = [
    ("pairs", "step", True),
    ("pairs", "step", "3"),
    ("pairs", "step", 3.5),
    ("pairs", "step", None),
    ("pairs", "step", float("nan")),
    ("pairs", "step", 2**63),
    ("pairs", "case_plain", 2**31),
    ("pairs", "case_plain", np.array([1, 2])),
    ("pairs", "loss", "1.5"),
    ("pairs", "loss", True),
    ("pairs", "loss", [1.5]),
    ("pairs", "pair_id", 7),
    ("pairs", "pair_id", b"raw"),
    ("pairs", "pair_id", "\ud800"),
    ("pairs", "separate_backward", 1),
    ("tokens", "inner", 1.5),
    ("tokens", "inner", ["a"]),
    ("tokens", "tokens_rows", "abc"),
    ("tokens", "tokens_rows", [1]),
    ("examples", "pair_id", None),
]


@pytest.mark.parametrize(("table", "column", "value"), WRONG, ids=lambda v: repr(v)[:20])
def test_a_value_of_another_type_is_refused(tmp_path: Path, table: str, column: str, value: object) -> None:
    row = {**sample_rows(TABLES[table], 1, holes=False)[0], column: value}
    with TraceWriter(tmp_path / "run", {}) as writer, pytest.raises(TraceError, match=f"'{column}': wanted"):
        writer.add(table, [row])


def test_a_truth_value_is_no_number(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run", {}) as writer, pytest.raises(TraceError) as raised:
        writer.add("pairs", [{"step": True, "loss": np.bool_(True)}])
    assert "'step': wanted int64, got True (bool) in row 0" in str(raised.value)
    assert "'loss': wanted float64, got np.True_ (bool) in row 0" in str(raised.value)


def test_nan_is_stored_as_null(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run", {}) as writer:
        writer.add("pairs", [{"step": step, "loss": loss} for step, loss in enumerate((float("nan"), None, 1.0))])
    assert pq.read_table(tmp_path / "run/pairs.parquet")["loss"].null_count == 2


def test_what_is_no_row_or_no_table_is_refused(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run", {}) as writer:
        with pytest.raises(TraceError, match="row 0: wanted a mapping"):
            writer.add("pairs", ["step"])  # type: ignore[list-item]
        with pytest.raises(
            TraceError, match=r"unknown table 'pair' \(did you mean pairs\?\); choose one of: pairs, pushes"
        ):
            writer.add("pair", [])
    with pytest.raises(TraceError, match="unknown table 'pair'"):
        load_trace(tmp_path / "run").table("pair")


def _stored(path: Path, table: str, row: dict[str, object]) -> dict[str, object]:
    with TraceWriter(path, {}) as writer:
        writer.add(table, iter([row]))
    [stored] = as_values(load_trace(path).table(table))
    return {name: stored[name] for name in row}


def test_numpy_values_are_taken(tmp_path: Path) -> None:
    row = {
        "step": np.int32(3),
        "pair_id": np.str_("x"),
        "loss": np.float32(0.5),
        "grad_norm_chosen": np.array(2.5),
        "case_plain": np.float64(2.0),
        "len_chosen": np.array([7]),
        "separate_backward": np.bool_(True),
        "rho": 2,
        "gate": np.float64("nan"),
        "mask_chosen": np.float64("inf"),
    }
    wanted = [3, "x", 0.5, 2.5, 2, 7, True, 2.0, None, float("inf")]
    assert _stored(tmp_path / "run", "pairs", row) == dict(zip(row, wanted, strict=True))


def test_torch_values_are_taken(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    row = {
        "step": torch.tensor(3),
        "loss": torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True),
        "case_plain": torch.tensor(2, dtype=torch.int32),
        "separate_backward": torch.tensor(False),
        "gate": torch.tensor(float("nan")),
    }
    assert list(_stored(tmp_path / "run", "pairs", row).values()) == [3, 0.5, 2, False, None]
    row = {"inner": torch.arange(4.0).reshape(2, 2)}
    assert _stored(tmp_path / "more", "tokens", {"step": 0, **row})["inner"] == [0.0, 1.0, 2.0, 3.0]
    with TraceWriter(tmp_path / "bad", {}) as writer, pytest.raises(TraceError, match="'loss': wanted"):
        writer.add("pairs", [{"step": 0, "loss": torch.zeros(2)}])


def test_matrices_are_stored_row_by_row(tmp_path: Path) -> None:
    row = {
        "step": 0,
        "inner": np.array([[1.0, 2.0], [3.0, 4.0]]),
        "cosine": ((1, np.nan), (0.5, 1)),
        "tokens_rows": [],
    }
    stored = _stored(tmp_path / "run", "tokens", row)
    assert stored == {
        "step": 0,
        "inner": [1.0, 2.0, 3.0, 4.0],
        "cosine": [1.0, None, 0.5, 1.0],
        "tokens_rows": [],
    }


def test_rank_is_filled_in_only_where_it_means_the_process(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run", {}) as writer:
        writer.add("pairs", [{"step": 0}, {"step": 1, "rank": 4}])
        writer.add("steps", [{"step": 0}])
        writer.add("mass", [{"step": 0}, {"step": 1, "rank": 0.25}])
    trace = load_trace(tmp_path / "run")
    assert list(trace.pairs["rank"]) == [0, 4]
    assert list(trace.steps["rank"]) == [0]
    assert as_values(trace.mass[["rank"]]) == [{"rank": None}, {"rank": 0.25}]  # a token's rank


def test_an_example_is_kept_once(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run", {}) as writer:
        for name in ("b", "a", "b"):
            writer.add("examples", [{"pair_id": name, "prompt": f"about {name}"}])
            writer.add("pairs", [{"step": 0, "pair_id": name}])
    trace = load_trace(tmp_path / "run")
    assert list(trace.examples["pair_id"]) == ["b", "a"]
    assert list(trace.pairs["pair_id"]) == ["b", "a", "b"]  # the same pair twice in a batch stays


def test_a_column_of_the_schema_needs_no_other_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = Column("surprise", "list<int32>", "nats", "what | nobody expected")
    monkeypatch.setitem(schema.TABLES, "pairs", replace(PAIRS, columns=(*PAIRS.columns, extra)))
    assert _stored(tmp_path / "run", "pairs", {"step": 0, "surprise": [1]})["surprise"] == [1]
    assert "| `surprise` | list<int32> | nats | what \\| nobody expected |" in schema_markdown()


def test_a_column_that_an_older_file_lacks_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stored(tmp_path / "run", "pairs", {"step": 0})
    extra = Column("surprise", "float64", "nats", "what nobody expected")
    with monkeypatch.context() as patch:
        patch.setitem(schema.TABLES, "pairs", replace(PAIRS, columns=(*PAIRS.columns, extra)))
        frame = load_trace(tmp_path / "run").pairs
        assert as_values(frame[["step", "surprise"]]) == [{"step": 0, "surprise": None}]
        _stored(tmp_path / "newer", "pairs", {"step": 0, "surprise": 1.0})
    with pytest.raises(TraceError, match=r"pairs\.parquet has columns that table 'pairs' does not have: surprise"):
        _ = load_trace(tmp_path / "newer").pairs


def test_tables_have_their_own_property() -> None:
    assert all(isinstance(getattr(Trace, name), property) for name in TABLES)
