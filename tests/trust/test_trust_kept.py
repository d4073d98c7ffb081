"""Which figures of the trials stay in the file that the docs are made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trust.__main__ import _keep
from trust.tally import Tally


@pytest.mark.parametrize(("lost", "stays"), [(0, 20_000), (1, 300)])
def test_a_nightly_figure_stays_until_a_smaller_run_finds_something(lost: int, stays: int, tmp_path: Path) -> None:
    file = tmp_path / "trust.json"
    _keep(file, {"soak": Tally("soak", 20_000, {"rows lost": 0}), "files": Tally("files", 40)}, nightly=True)
    _keep(file, {"soak": Tally("soak", 300, {"rows lost": lost}), "data": Tally("data", 60)}, nightly=False)
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert list(kept) == ["files", "data", "soak"]
    assert kept["soak"]["tried"] == stays and kept["soak"]["holds"] is (lost == 0)
    _keep(file, {"soak": Tally("soak", 10_000, {"rows lost": 0})}, nightly=True)
    assert json.loads(file.read_text(encoding="utf-8"))["soak"]["tried"] == 10_000
