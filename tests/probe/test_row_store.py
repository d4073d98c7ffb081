"""All recorded rows, packed into columns: read back value for value and type for type."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyn_probe.probe.row_store import RowStore

VALUES = st.one_of(
    st.floats(), st.integers(-(2**70), 2**70), st.booleans(), st.none(), st.text(max_size=3), st.lists(st.integers())
)
ROWS = st.lists(st.dictionaries(st.sampled_from("abcd"), VALUES), max_size=6)


def same(left: Any, right: Any) -> bool:
    """Equal in value and type; NaN equals NaN."""
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    return type(left) is type(right) and left == right


def assert_rows(store: RowStore, rows: list[dict[str, Any]]) -> None:
    """The store reads as ``rows``: by iteration, by place from both ends, and by slice."""
    assert len(store) == len(rows)
    for read in (list(store), [store[i] for i in range(len(rows))], [store[i - len(rows)] for i in range(len(rows))]):
        for got, wanted in zip(read, rows, strict=True):
            assert got.keys() == wanted.keys() and all(same(got[name], wanted[name]) for name in wanted)
    assert len(store[1:]) == max(0, len(rows) - 1)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=st.lists(ROWS, max_size=4), pending=ROWS)
def test_rows_come_back_as_they_were(batches: list[Any], pending: list[Any]) -> None:
    store = RowStore()
    for batch in batches:
        store.pending += batch
        store.settle()
    store.pending += pending
    assert_rows(store, [row for batch in [*batches, pending] for row in batch])


def test_a_lost_or_changed_row_is_seen() -> None:
    store = RowStore()
    store.pending += [{"a": 1}, {"a": 2}]
    store.settle()
    for wrong in ([{"a": 1}], [{"a": 1}, {"a": 2.0}], [{"a": 1}, {"a": 2, "b": 3}]):
        with pytest.raises(AssertionError):
            assert_rows(store, wrong)


def test_places_outside_are_refused() -> None:
    with pytest.raises(IndexError, match="row 0 of 0"):
        RowStore()[0]


def test_rows_of_the_step_in_progress_can_still_change() -> None:
    store = RowStore()
    store.pending += [{"a": 1.0}]
    store.pending[0]["b"] = 2.0
    assert store[0] == {"a": 1.0, "b": 2.0}
    store.settle()
    store[0]["a"] = 9.0
    assert store[0] == {"a": 1.0, "b": 2.0}


def test_rows_that_are_not_kept_leave_with_their_step() -> None:
    store = RowStore(keep=False)
    store.pending += [{"a": 1.0}]
    assert len(store) == 1
    store.settle()
    assert len(store) == 0


def test_a_packed_row_takes_a_fifth_of_a_dict() -> None:
    rows = [{f"column {k}": i + k / 64 for k in range(30)} | {"pair_id": f"{i % 50:032x}"} for i in range(2000)]
    store = RowStore()
    store.pending += rows
    store.settle()
    packed = sum(sys.getsizeof(c.values) + sys.getsizeof(c._known) for c in store._columns.values())
    loose = sum(sys.getsizeof(row) + sum(sys.getsizeof(v) for v in row.values()) for row in rows)
    assert packed / len(rows) < 350 and packed < 0.2 * loose
