"""What is said of parts of responses, likeness, synchrony, effective magnitudes and Theorem 3: every number against a
plain loop or a closed form."""

from __future__ import annotations

from math import exp, log
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import pytest
from report_frames import Options
from report_runs import manifest, write_tables
from sides import trace_of, two_sided_tables
from tiny_runs import run

from dyn_probe.report import pair_columns
from dyn_probe.report.agreement import BLOCKS, by_group, synchrony
from dyn_probe.report.comparing import deltas
from dyn_probe.report.figures.likeness import medians
from dyn_probe.report.figures.response_parts import part_change
from dyn_probe.report.overview import overview
from dyn_probe.report.ranked import ranked_pairs
from dyn_probe.report.verdicts import alike, shaped, theorem
from dyn_probe.report.verdicts import synchrony as spoken
from dyn_probe.trace.reader import Trace, load_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return trace_of(tmp_path_factory.mktemp("run") / "run", two_sided_tables())


def values(found) -> dict[str, float]:
    return {number.key: number.value for verdict in found for number in verdict.numbers}


def correlation(x: list[float], y: list[float]) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / (sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)) ** 0.5


def test_synchrony_is_the_correlation_of_the_steps_means_with_a_jackknifed_error(trace: Trace) -> None:
    rows = trace.pairs.to_dict("records")
    by_step: dict[int, list[dict]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row)
    sides = [
        [sum(r[f"realised_delta_{side}"] for r in by_step[s]) / len(by_step[s]) for s in sorted(by_step)]
        for side in ("chosen", "rejected")
    ]
    found = synchrony(trace.pairs)
    assert found is not None and found.run == pytest.approx(correlation(*sides), abs=1e-10)
    size = len(by_step) // BLOCKS
    left_out = [
        correlation(*([x for k, x in enumerate(side) if k // size != block] for side in sides))
        for block in range(BLOCKS)
    ]
    mean = sum(left_out) / BLOCKS
    assert found.error == pytest.approx(((BLOCKS - 1) / BLOCKS * sum((r - mean) ** 2 for r in left_out)) ** 0.5)
    by_pair: dict[str, list[dict]] = {}
    for row in rows:
        by_pair.setdefault(row["pair_id"], []).append(row)
    own = [
        correlation(*([r[f"realised_delta_{side}"] for r in part] for side in ("chosen", "rejected")))
        for part in by_pair.values()
        if len(part) >= 5
    ]
    assert found.pairs == len(own) and found.pair == pytest.approx(sum(own) / len(own))
    assert found.pair_error == pytest.approx(np.std(own, ddof=1) / len(own) ** 0.5)


def frame_of(up, down, **more) -> pd.DataFrame:
    steps = np.arange(len(up))
    ids = [f"p{k % 4}" for k in steps]
    return pd.DataFrame(
        {"step": steps, "pair_id": ids, "realised_delta_chosen": up, "realised_delta_rejected": down, **more}
    )


def test_sides_that_move_as_one_are_synchronous_and_too_few_steps_say_nothing() -> None:
    draw = np.random.default_rng(0).normal(size=40)
    one = synchrony(frame_of(draw, 3 * draw + 1))
    assert one is not None and one.run == pytest.approx(1) and one.error == pytest.approx(0, abs=1e-9)
    assert "moves the other with it" in spoken.meaning(one)
    other = synchrony(frame_of(draw, -draw))
    assert other is not None and "one rises where the other falls" in spoken.meaning(other)
    assert synchrony(frame_of(draw[:7], draw[:7])) is None
    assert synchrony(frame_of(draw, draw).drop(columns="realised_delta_chosen")) is None
    first_order = frame_of(draw, draw).rename(columns=lambda name: name.replace("realised", "update"))
    found = synchrony(first_order)
    assert found is not None and "first order" in found.basis


def test_synchrony_stands_in_the_overview_and_in_comparisons(trace: Trace) -> None:
    found = synchrony(trace.pairs)
    assert found is not None
    lines = {line.key: line.last for line in overview(trace)}
    assert lines["synchrony"] == found.run and lines["synchrony_error"] == found.error
    assert {line.key for line in deltas({"a": trace, "b": trace})} >= {"synchrony", "magnitude_ratio", "balance_token"}
    said = values(spoken.together(trace))
    assert said["synchrony"] == found.run and said["synchrony_pair"] == found.pair


def test_likeness_is_taken_pair_by_pair(trace: Trace) -> None:
    by_pair: dict[str, list[dict]] = {}
    for row in trace.pairs.to_dict("records"):
        by_pair.setdefault(row["pair_id"], []).append(row)
    means = {
        name: [sum(r[name] for r in part) / len(part) for part in by_pair.values()]
        for name in ("edit_distance", "grad_cosine", "realised_delta_chosen", "realised_delta_rejected")
    }
    ranks = {name: [sorted(column).index(x) for x in column] for name, column in means.items()}
    said = values(alike.near_duplicates(trace))
    assert said["edit_distance"] == pytest.approx(median(means["edit_distance"]))
    assert said["near_duplicates"] == pytest.approx(np.mean(np.array(means["edit_distance"]) <= 0.1))
    for key, name in (("edit_cosine", "grad_cosine"), ("edit_change_chosen", "realised_delta_chosen")):
        assert said[key] == pytest.approx(correlation(ranks["edit_distance"], ranks[name]), abs=1e-9)
    assert (
        ranked_pairs(trace, "edit_distance", top=5).edit_distance.tolist()
        == sorted(trace.pairs.drop_duplicates("pair_id").edit_distance)[:5]
    )


def test_many_entangled_near_duplicates_are_worth_a_look(tmp_path: Path) -> None:
    tables = two_sided_tables()
    pairs = tables["pairs"]
    pairs["edit_distance"] = pairs.edit_distance / 4
    pairs["grad_cosine"] = 1 - pairs.edit_distance
    (found,) = alike.near_duplicates(trace_of(tmp_path / "run", tables))
    assert found.level == "note" and "more entangled" in found.sentence and found.knobs


def test_medians_of_a_figure_never_split_equal_distances() -> None:
    x = np.repeat([0.1, 0.2, 0.9], [50, 3, 5])
    places, middles = medians(x, np.arange(58.0))
    assert places.tolist() == [0.1, 0.9] and middles.tolist() == [24.5, 53.5]
    assert len(medians(np.empty(0), np.empty(0))[0]) == 0


def test_parts_change_since_the_pairs_own_first_step_or_since_the_first_tenth() -> None:
    pairs = pd.DataFrame(
        {"step": [0, 0, 1, 1, 2], "pair_id": ["a", "b", "a", "b", "a"], "x": [-1.0, -2.0, -1.5, -2.25, -3.0]}
    )
    change, basis = part_change(pairs, "x")
    np.testing.assert_allclose(change, [np.nan, np.nan, -0.5, -0.25, -2.0])
    assert "its first recorded step" in basis
    change, basis = part_change(pairs.assign(pair_id=list("abcde")), "x")
    np.testing.assert_allclose(change, [0.5, -0.5, 0.0, -0.75, -1.5])
    assert "first tenth" in basis


def balances(row: dict, ceiling: float) -> dict[str, float]:
    ahead = {side: row[f"logp_{side}"] - row[f"ref_logp_{side}"] for side in ("chosen", "rejected")}
    u = {side: h / row[f"len_{side}"] for side, h in ahead.items()}
    d = row["pull_chosen"] / row["pull_rejected"]
    return {
        "magnitude_ratio": d * row["grad_norm_chosen"] / row["grad_norm_rejected"],
        "balance_token": (row["pull_chosen"] / exp(u["chosen"])) / (row["pull_rejected"] / exp(u["rejected"])),
        "balance_ceiling": d / min(exp(u["chosen"] - u["rejected"]), ceiling),
        "balance_raw": log(d) - (ahead["chosen"] - ahead["rejected"]) if d > 0 else float("nan"),
    }


def test_effective_magnitudes_are_those_of_a_loop(tmp_path: Path) -> None:
    tables, about = two_sided_tables(), manifest(Options())
    objective = {"name": "dpo", "shaping": [{"name": "adadpo", "options": {"ceiling": 1.01}}]}
    trace = load_trace(write_tables(tmp_path / "run", tables, about | {"objective": objective}))
    rows = [balances(row, 1.01) for row in trace.pairs.to_dict("records")]
    wide = pd.DataFrame(rows)
    for name in wide:
        compute = getattr(pair_columns, name)
        own = compute(trace.pairs, 1.01) if name == "balance_ceiling" else compute(trace.pairs)
        np.testing.assert_allclose(own, wide[name])
    said, late = values(shaped.balance(trace)), trace.pairs.step.to_numpy() >= 54
    for name in wide:
        assert said[name] == pytest.approx(wide[name][late].dropna().median())
    assert len(set(wide.balance_ceiling / wide.balance_token)) > 1, "the ceiling is reached nowhere"


@pytest.mark.parametrize(("shaping", "balanced"), [(("adadpo:ceiling=1.02",), True), ((), False)])
def test_a_run_under_adadpo_is_balanced_up_to_its_ceiling(shaping, balanced: bool, tmp_path: Path) -> None:
    trace = run(tmp_path / "run", shaping=shaping, steps=4, lr=3e-3)
    late = trace.pairs[trace.pairs.step > 1]
    off = np.abs(pair_columns.balance_ceiling(late, 1.02) - 1).max()
    assert bool(off < 1e-5) is balanced


def test_theorem_3_is_counted_over_all_positions(tmp_path: Path) -> None:
    tables = two_sided_tables()
    tokens = tables["tokens"]
    tokens["theorem_3_holds"] = [[1.0, 0.0], [], [0.0]]
    tokens["theorem_3_change"] = [[-0.5, 0.25], [], [-0.125]]
    said = values(theorem.after(trace_of(tmp_path / "run", tables)))
    assert said == {"assumption_holds": 1 / 3, "conclusion_holds": 2 / 3, "n": 3}
    assert theorem.after(trace_of(tmp_path / "old", two_sided_tables())) == []


def test_the_correlations_of_groups_are_those_of_their_rows() -> None:
    draw = np.random.default_rng(3)
    names = np.array([f"p{number}" for number in draw.integers(0, 9, 90)])
    x, y = draw.normal(1e3, 1, (2, 90))
    x[names == "p3"] = 0.1  # a constant column has no correlation
    names[:3] = "few"
    found = by_group(names, x, y, least=5)
    for value, name in zip(found, pd.unique(names), strict=True):
        own = names == name
        known = own.sum() >= 5 and np.ptp(x[own]) > 0
        assert value == pytest.approx(np.corrcoef(x[own], y[own])[0, 1]) if known else np.isnan(value)
