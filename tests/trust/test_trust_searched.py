"""Every door by Hypothesis, in small numbers; a failing value is found and shrunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from trust import searched, security
from trust.tally import Tally

COUNTS = {"options": 30, "config file": 30, "data rows": 20, "run.json": 10, "tables": 5, "page data": 5}


@pytest.mark.parametrize("door", COUNTS)
def test_no_value_ends_in_a_traceback(door: str, tmp_path: Path) -> None:
    tally = searched.search(tmp_path, COUNTS[door], only=door)
    assert tally.holds and tally.tried >= 2, tally.failures


def test_a_value_that_does_is_found_and_shrunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Path) -> Any:
        return st.lists(st.integers()), lambda some: 1 / (sum(some) < 100)

    monkeypatch.setattr(searched, "SEARCHES", {"a door": (fails, 1.0)})
    tally = searched.search(tmp_path, 200)
    assert tally.zero["tracebacks"] == 1 and "a door: [100]: ZeroDivisionError" in tally.failures[0]


SLOW = (security.network, security.sizes)
SAFE = [
    pytest.param(name, marks=[pytest.mark.slow] if part in SLOW else [])
    for name, part in security.PARTS.items()
    if part is not security.texts
]
"""Parts of the trial; the one with a training is left to `make trust`."""


@pytest.mark.parametrize("name", SAFE)
def test_a_trace_a_page_and_a_checkpoint_do_no_harm(name: str, tmp_path: Path) -> None:
    tally = security.try_security(tmp_path, 10, 3, only=name)
    assert tally.holds, tally.failures


def test_a_link_that_is_followed_and_a_text_that_is_kept_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("manifest", "merge"):
        monkeypatch.setattr(f"dyn_probe.trace.{module}.refuse_link_out", lambda run, path: None)
    tally = Tally("", zero=dict.fromkeys(security.ZERO, 0))
    security.outside(tally, tmp_path, 1, 0)
    assert tally.zero["read or written outside"] >= 2
    assert set(security.found_words(tmp_path / "outside-paths")) == set()
    with security.TraceWriter(tmp_path / "kept", {"note": "Review"}):
        pass
    assert security.found_words(tmp_path / "kept") == ["Review"]
