"""Several runs: joined by pair id where they share pairs, said plainly where they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_checks import value
from report_frames import Options, simulate
from report_runs import manifest, new_trace, write_tables

from dyn_probe.report.build import build_report
from dyn_probe.report.compare_data import comparison_data
from dyn_probe.report.comparing import common_basis, deltas, joined, labelled
from dyn_probe.report.figures import COMPARISONS
from dyn_probe.report.figures.margin import margin_words
from dyn_probe.report.verdicts.comparison import comparison
from dyn_probe.trace.reader import Trace, load_trace

BASE = Options(steps=40)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    """Two runs on the same pairs and one on others."""
    folder = tmp_path_factory.mktemp("runs")
    made = {
        "dpo": new_trace(folder / "dpo", BASE),
        "gentle": new_trace(folder / "gentle", replace(BASE, regime="case1")),
        "stranger": new_trace(folder / "stranger", replace(BASE, seed=9)),
    }
    assert set(made["dpo"].pairs.pair_id) == set(made["gentle"].pairs.pair_id)
    return made


def last_rows(trace: Trace) -> dict[str, dict]:
    """The last recorded row of every pair, by a plain loop."""
    found: dict[str, dict] = {}
    for row in trace.pairs.sort_values("step").to_dict("records"):
        found[row["pair_id"]] = row
    return found


def two(runs: dict[str, Trace]) -> dict[str, Trace]:
    return {name: runs[name] for name in ("dpo", "gentle")}


def test_pairs_are_joined_by_id_at_their_last_row(runs: dict[str, Trace]) -> None:
    table = joined(two(runs))
    for label in ("dpo", "gentle"):
        slow = last_rows(runs[label])
        assert set(table.index) == set(slow)
        expected = [slow[name]["logp_chosen"] / slow[name]["len_chosen"] for name in table.index]
        np.testing.assert_allclose(table[label]["logp_per_token_chosen"], expected)


def test_sentences_compare_the_same_pairs(runs: dict[str, Trace]) -> None:
    a, b = last_rows(runs["dpo"]), last_rows(runs["gentle"])
    both = [name for name in a if a[name]["step"] >= 36 and b[name]["step"] >= 36]
    assert 5 < len(both) < len(a)
    gap = np.array([(b[name]["logp_chosen"] - a[name]["logp_chosen"]) / a[name]["len_chosen"] for name in both])
    found = next(v for v in comparison(two(runs)) if v.sentence.startswith("On the same pairs, chosen"))
    assert value(found, "difference_logp_per_token_chosen") == pytest.approx(np.median(gap))
    assert value(found, "higher_logp_per_token_chosen") == pytest.approx((gap > 0).mean())
    assert "higher in gentle than in dpo" in found.sentence and "chosen ends" in found.sentence


def test_all_shared_pairs_are_compared_where_few_are_seen_at_the_end(tmp_path: Path) -> None:
    sparse = Options(steps=20, batch=1, pairs=20)
    traces = {name: new_trace(tmp_path / name, replace(sparse, regime=name)) for name in ("case1", "case2")}
    found = next(v for v in comparison(traces) if v.sentence.startswith("On the same pairs, chosen"))
    assert "when the pair was last recorded" in found.sentence
    assert value(found, "n") == len(set(traces["case1"].pairs.pair_id))


def test_runs_on_other_pairs_say_so_and_still_compare(runs: dict[str, Trace]) -> None:
    found = comparison(runs)
    words = "\n".join(verdict.sentence for verdict in found)
    assert "dpo (47 pairs) and stranger (48 pairs) have no pair in common" in words
    assert "dpo (47 pairs) and gentle (47 pairs) have 47 pairs in common" in words
    assert not any("than in dpo" in v.sentence and "stranger" in v.sentence for v in found)
    assert "On the same pairs, chosen" in words
    assert "stranger" in next(v.sentence for v in found if "case 2" in v.sentence)


def test_differences_are_to_the_first_run(runs: dict[str, Trace]) -> None:
    line = next(line for line in deltas(two(runs)) if line.key == "cosine")
    ends = [trace.pairs[trace.pairs.step >= 36].grad_cosine.median() for trace in two(runs).values()]
    assert list(line.values.values()) == pytest.approx(ends)
    assert line.delta("gentle") == pytest.approx(ends[1] - ends[0])
    assert line.delta("dpo") == 0


def scored(path: Path, formula: str, score: float) -> Trace:
    """A run whose objective compares something else than log-ratios."""
    tables = simulate(BASE)
    tables["pairs"] = tables["pairs"].assign(score_chosen=score, score_rejected=0.0)
    words = {"formula": formula, "unit": "nats/token", "meaning": f"the score {formula}"}
    about = manifest(BASE) | {"objective": {"name": "some", "score": words}}
    return load_trace(write_tables(path, tables, about))


def test_runs_of_two_objectives_are_compared_by_log_ratios(tmp_path: Path) -> None:
    """The same dynamics under two scores: the own accuracies differ and say whose they are, the common one is one."""
    traces = {"one": scored(tmp_path / "one", "a, b", 1.0), "two": scored(tmp_path / "two", "ā, b̄", -1.0)}
    lines = {line.name: line.values for line in deltas(traces)}
    assert lines["accuracy, by each run's own score"] == {"one": 1.0, "two": 0.0} and "accuracy" not in lines
    assert lines["log-ratio accuracy"]["one"] == lines["log-ratio accuracy"]["two"]
    said = {row["label"]: row for row in comparison_data(traces)["facts"]}["Margin and accuracy of"]
    assert said["texts"] == ["the score a, b", "the score ā, b̄"] and said["differs"]
    spoken = [v.sentence for v in comparison(traces) if "log-ratio margin" in v.sentence]
    assert len(spoken) == 1 and "the log-ratio margin ends 0 nats/sequence" in spoken[0]


def test_the_margin_is_drawn_under_the_name_of_its_score(tmp_path: Path, runs: dict[str, Trace]) -> None:
    assert margin_words(scored(tmp_path / "one", "ā, b̄", 1.0)) == ("Margin of ā, b̄", "nats per token")
    assert margin_words(runs["dpo"]) == ("Margin", "nats per sequence")


def test_the_settings_that_differ_are_marked(runs: dict[str, Trace], tmp_path: Path) -> None:
    other = new_trace(tmp_path / "other", BASE, model={"name": "pythia"})
    traces = {"dpo": runs["dpo"], "other": other}
    rows = {row["label"]: row["differs"] for row in comparison_data(traces)["facts"]}
    assert rows["Model"] and not rows["Objective"]
    assert any("differ in model.name (dpo: built-in, other: pythia)" in v.sentence for v in comparison(traces))


def test_names_are_unique(runs: dict[str, Trace], tmp_path: Path) -> None:
    a, b = (new_trace(tmp_path / parent / "run", Options(steps=1, batch=1)) for parent in ("x", "y"))
    assert list(labelled([a, b])) == ["x/run", "y/run"]
    assert list(labelled([a, a])) == ["1: x/run", "2: x/run"]


def test_curves_use_the_best_basis_that_all_runs_have(runs: dict[str, Trace], tmp_path: Path) -> None:
    bare = new_trace(tmp_path / "bare", replace(BASE, reference=False))
    once = new_trace(tmp_path / "once", Options(steps=1, reference=False))
    assert common_basis(two(runs)) == "since_reference"
    assert common_basis({"a": runs["dpo"], "b": bare}) == "since_first"
    assert common_basis({"a": runs["dpo"], "b": once}) == "per_token"


def test_the_page_of_several_runs(runs: dict[str, Trace]) -> None:
    page = build_report([trace.path for trace in runs.values()])
    assert page.parent.name == "compare-dpo-gentle-stranger"
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/svg+xml;base64,") == len(COMPARISONS) and "<script" not in html
    assert "What differs" in html and "have no pair in common" in html and "Held-out pairs" not in html
    assert {path.name for path in (page.parent / "tables").iterdir()} == {
        "verdicts.csv",
        "differences.csv",
        "same_pairs.csv",
        "definitions.csv",
    }


@pytest.mark.usefixtures("unrendered")
def test_the_page_of_a_grid_says_what_became_of_held_out_pairs(runs: dict[str, Trace], tmp_path: Path) -> None:
    row = {"method": "<dpo>", "seeds": 2, "chosen": -1.25, "rejected": -3.0, "margin": 1.75,
           "log_ratio_accuracy": 0.25, "accuracy": 0.5, "score": "h_w, h_l", "runs": 4}  # fmt: skip
    page = build_report(
        [trace.path for trace in two(runs).values()], tmp_path / "page",
        held_out={"rows": [row], "says": ["Chosen <rises>: +1.00 nats."]},
    )  # fmt: skip
    html = page.read_text(encoding="utf-8")
    assert "Held-out pairs" in html and "<p>Chosen &lt;rises&gt;: +1.00 nats.</p>" in html
    cells = "".join(f'<td class="number">{cell}</td>' for cell in ["−1.25", "−3", "+1.75", "25%", "50%"])
    score = "<td>h<sub>w</sub>, h<sub>l</sub></td>"
    assert f'<tr><td>&lt;dpo&gt;</td>{cells}{score}<td class="number">2</td><td class="number">4</td></tr>' in html
    assert "Log-ratio accuracy" in html and "Own accuracy" in html
    table = (page.parent / "tables" / "held_out.csv").read_text(encoding="utf-8").splitlines()
    assert table == [
        "method,seeds,chosen,rejected,margin,log_ratio_accuracy,accuracy,score,runs",
        '<dpo>,2,-1.25,-3.0,1.75,0.25,0.5,"h_w, h_l",4',
    ]
