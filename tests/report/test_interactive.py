"""What the page draws from: lines, bands, pairs and shares, each held to pandas or numpy by another way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_frames import Options
from report_runs import new_trace
from token_samples import label_heat

from dyn_probe.report.interactive import pair_view as view
from dyn_probe.report.interactive.library import UPLOT, page_figures, scripts, vendored
from dyn_probe.report.interactive.step_charts import step_charts
from dyn_probe.report.push_parts import PARTS
from dyn_probe.report.ranked import ranked_pairs
from dyn_probe.trace.reader import Trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A run of 30 steps: few enough that every bin of a chart is known."""
    return new_trace(tmp_path_factory.mktemp("interactive") / "run", Options(steps=30))


def chart(trace: Trace, title: str) -> dict:
    (one,) = (chart for chart in step_charts(trace) if chart["title"].startswith(title))
    return one


def lines(one: dict) -> dict[str, dict]:
    return {line["label"]: line for line in one["series"]}


def binned(frame: pd.DataFrame, one: dict) -> list[pd.DataFrame]:
    """The rows of each bin of a chart."""
    return [frame[frame["step"].between(low, high)] for low, high in zip(one["low"], one["high"], strict=True)]


def test_the_bins_cover_every_step_once(trace: Trace) -> None:
    for one in step_charts(trace):
        covered = [
            step for low, high in zip(one["low"], one["high"], strict=True) for step in range(int(low), int(high) + 1)
        ]
        assert covered == list(range(30)), one["title"]


def test_cosine_and_inner_product_are_quartiles_of_their_bins(trace: Trace) -> None:
    for title, label, column in (("Cosine", "cosine", "grad_cosine"), ("Inner", "inner product", "grad_inner")):
        one = chart(trace, title)
        rows = [part[column].quantile([0.25, 0.5, 0.75]).to_list() for part in binned(trace.pairs, one)]
        line = lines(one)[label]
        assert np.allclose(np.transpose(rows), [line[name] for name in ("low", "values", "high")], rtol=1e-3)


def test_moved_is_per_token_and_from_the_reference(trace: Trace) -> None:
    one = chart(trace, "Log-probability")
    for side in ("chosen", "rejected"):
        moved = (trace.pairs[f"logp_{side}"] - trace.pairs[f"ref_logp_{side}"]) / trace.pairs[f"len_{side}"]
        medians = [part["moved"].median() for part in binned(trace.pairs.assign(moved=moved), one)]
        assert np.allclose(medians, lines(one)[side]["values"], rtol=1e-3, atol=1e-9)


def test_pushes_are_means_that_add_up(trace: Trace) -> None:
    for side in ("chosen", "rejected"):
        one = chart(trace, f"Pushes on {side} in its own steps")
        known = lines(one)
        rows = binned(trace.pushes[trace.pushes["side"] == side], one)
        for name, label in PARTS.items():
            means = [part[name].mean() for part in rows]
            assert label not in known or np.allclose(means, known[label]["values"], rtol=1e-3)
        parts = np.sum([known[label]["values"] for label in PARTS.values() if label in known], axis=0)
        assert np.allclose(parts, known["total"]["values"], atol=2e-3 * np.abs(parts).max())
        realised = [part[f"realised_delta_{side}"].mean() for part in binned(trace.pairs, one)]
        assert known["measured"]["dashed"] and np.allclose(realised, known["measured"]["values"], rtol=1e-3)


def test_conditions_have_their_rule_at_one(trace: Trace) -> None:
    one = chart(trace, "Conditions")
    pairs = trace.pairs
    share = pairs.pull_rejected * pairs.grad_inner / (pairs.pull_chosen * pairs.grad_norm_chosen**2)
    medians = [part["share"].median() for part in binned(pairs.assign(share=share), one)]
    assert one["level"] == 1 and np.allclose(medians, lines(one)["chosen"]["values"], rtol=1e-3)


def test_the_table_has_every_pair_in_the_order_of_the_ranking(trace: Trace) -> None:
    found = view.pair_view(trace)
    frame = ranked_pairs(trace, None, None)
    assert (
        found is not None
        and found["ids"] == frame["pair_id"].to_list()
        and found["total"] == trace.pairs["pair_id"].nunique()
    )
    assert [column["label"] for column in found["columns"]][:3] == ["Δ chosen", "Δ rejected", "cosine"]
    for column, values in zip(found["columns"], found["numbers"], strict=True):
        assert np.allclose(frame[column["key"]].astype(float), np.array(values, float), rtol=1e-3, equal_nan=True)
    prompt, chosen, rejected = found["texts"][0]
    assert prompt == frame["prompt"].iloc[0] and ["positive "] in chosen and ["negative "] in rejected
    assert "".join(part if isinstance(part, str) else part[0] for part in chosen) == frame["chosen"].iloc[0]


def test_the_steps_of_a_pair_are_its_rows(trace: Trace) -> None:
    found = view.pair_view(trace)
    assert found is not None
    name = found["ids"][5]
    rows, own = trace.pairs[trace.pairs["pair_id"] == name], found["series"][name]
    assert own["steps"] == rows["step"].to_list() and np.allclose(
        own["logps"]["chosen"], rows["logp_chosen"], rtol=1e-3
    )
    pushes = trace.pushes[(trace.pushes["pair_id"] == name) & (trace.pushes["side"] == "rejected")]
    assert np.allclose(own["pushes"]["rejected"]["past"], pushes["past"], rtol=1e-3)


def test_the_share_of_a_token_is_its_row_or_column_of_the_inner_product() -> None:
    heat = label_heat()
    found = view.token_shares(heat)
    total = sum(heat.inner[i, j] for i in range(heat.inner.shape[0]) for j in range(heat.inner.shape[1]))
    for k in range(3):
        assert found["chosen"][1][k] == pytest.approx(sum(heat.inner[k]) / total, rel=1e-3)
        assert found["rejected"][1][k] == pytest.approx(sum(row[k] for row in heat.inner) / total, rel=1e-3)
    assert sum(found["chosen"][1]) == pytest.approx(1, rel=1e-2)
    flat = replace(heat, inner=heat.inner - heat.inner.mean())
    assert set(view.token_shares(flat)["chosen"][1]) == {None}


def test_a_large_run_keeps_the_first_pairs_in_full_and_a_sample(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = pd.Series([f"p{k}" for k in range(10_000)])
    kept = view.kept_places(ids, ["p9999"])
    assert kept[:400] == list(range(400)) and 9_999 in kept and len(kept) <= 1_601
    assert max(np.diff(kept[400:])) == 8
    monkeypatch.setattr(view, "RANKED", 3)
    monkeypatch.setattr(view, "LETTERS", 10)
    monkeypatch.setattr(view, "MOST_ROWS", 12)
    small = view.pair_view(trace)
    assert small is not None and len(small["texts"][2][0]) > 10 and len(small["texts"][3][0]) == 10
    assert 0 < sum(len(own["steps"]) for own in small["series"].values()) <= 12
    assert list(small["series"]) == small["ids"][: len(small["series"])]


def test_nothing_recorded_is_nothing_drawn(tmp_path: Path) -> None:
    empty = new_trace(tmp_path / "run", Options(steps=1, batch=1, pairs=1))
    json.dumps(page_figures(empty), allow_nan=False)  # one row: drawn as far as it goes
    assert page_figures(replace(empty, path=tmp_path / "run")) is not None


def test_the_library_is_as_published_and_needs_no_more_than_its_policy() -> None:
    library, own = scripts()
    assert "(v1.6.32)" in library and UPLOT.endswith("1.6.32") and "MIT" in vendored("LICENSE")
    for script in (library, own):
        for forbidden in ("eval(", "new Function", "innerHTML", "fetch(", "XMLHttpRequest", "import(", "</script"):
            assert forbidden not in script, forbidden
    assert "http" not in own
