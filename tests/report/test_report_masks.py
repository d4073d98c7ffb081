"""Token masks in the report: when they died or chose nothing, and beside the tokens of the heat map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sides import trace_of, two_sided_tables

from dyn_probe.report.figures import FIGURES
from dyn_probe.report.verdicts import shaped
from dyn_probe.token_analysis import recorded_heats


@pytest.mark.parametrize(
    ("kept", "spread", "level", "words"),
    [
        (0.3, 0.4, "note", "standard deviation of 0.40 within a pair"),
        (0.01, 0.02, "warning", "died"),
        (0.5, 0.02, "warning", "select nothing"),
    ],
)
def test_masks_that_died_or_chose_nothing_are_said(kept, spread, level, words, tmp_path: Path) -> None:
    tables = two_sided_tables()
    late = tables["pairs"].step >= 54
    for name, value in (("mask_chosen", kept), ("mask_rejected", kept), ("mask_spread", spread)):
        tables["pairs"][name] = np.where(late, value, 0.5)
    (found,) = shaped.mask(trace_of(tmp_path / "run", tables))
    assert found.level == level and words in found.sentence
    assert {n.key: n.value for n in found.numbers}["mask_spread"] == pytest.approx(spread)


def test_each_token_of_the_heat_map_has_its_mask(tmp_path: Path) -> None:
    tables = two_sided_tables()
    rows = tables["tokens"]
    rows["mask_tokens_chosen"] = [[round(0.1 * k, 2) for k in range(len(one))] for one in rows.tokens_rows]
    rows["mask_tokens_rejected"] = [[round(0.9 - 0.1 * k, 2) for k in range(len(one))] for one in rows.tokens_columns]
    trace = trace_of(tmp_path / "run", tables)
    heat = recorded_heats(trace.tokens)[-1]
    assert heat.masks is not None
    ax = FIGURES["token_heat"].draw(trace).axes[0]
    for axis, mask in ((ax.yaxis, heat.masks[0]), (ax.xaxis, heat.masks[1])):
        said = [float(label.get_text().rpartition(" ")[2]) for label in axis.get_ticklabels()]
        np.testing.assert_allclose(said, mask, atol=0.005)
    plain = recorded_heats(trace_of(tmp_path / "plain", two_sided_tables()).tokens)
    assert all(one.masks is None for one in plain)
