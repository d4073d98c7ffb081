"""Ranked pairs and the terminal summary."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_frames import DEFAULT, Options, simulate
from report_runs import manifest, new_trace, write_run, write_tables
from rich.console import Console
from rich.text import Text

from dyn_probe.errors import BadInput
from dyn_probe.report.overview import overview
from dyn_probe.report.pair_cards import push_bars
from dyn_probe.report.push_parts import PARTS
from dyn_probe.report.ranked import (
    COLUMNS,
    RANKINGS,
    available,
    chosen_ranking,
    ranked_pairs,
    ranking_words,
    shown_case,
)
from dyn_probe.report.style import PUSH_COLOURS
from dyn_probe.report.summary import summary_lines
from dyn_probe.report.verdicts import signed, verdicts
from dyn_probe.trace.reader import Trace, load_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return new_trace(tmp_path_factory.mktemp("runs") / "run", DEFAULT)


ELSEWHERE = ("run", "rejected", "ches", "ches-normalised", "edit_distance", "gate")
"""Rankings by numbers that the run here lacks: below, in test_report_stalled, _ches, _differences and _gate."""


@pytest.mark.parametrize("by", [name for name in RANKINGS if name not in ELSEWHERE])
def test_pairs_come_in_the_order_of_the_ranking(by: str, trace: Trace) -> None:
    table = ranked_pairs(trace, by, top=None)
    assert tuple(table.columns) == COLUMNS
    assert table.pair_id.is_unique and len(table) == trace.pairs.pair_id.nunique()
    key = table[RANKINGS[by].column].dropna()
    assert key.is_monotonic_decreasing if RANKINGS[by].largest_first else key.is_monotonic_increasing
    assert len(key) > 40


def test_a_pair_has_its_last_row_its_count_and_its_text(trace: Trace) -> None:
    first = ranked_pairs(trace, top=1).iloc[0]
    rows = trace.pairs[trace.pairs.pair_id == first.pair_id].sort_values("step")
    assert (first.step, first.rows) == (rows.step.iloc[-1], len(rows))
    last = rows.iloc[-1]
    excess = last.grad_inner - last.pull_chosen / last.pull_rejected * last.grad_norm_chosen**2
    assert first.excess == pytest.approx(excess)
    text = trace.examples.set_index("pair_id").loc[first.pair_id]
    assert (first.prompt, first.chosen, first.source) == (text.prompt, text.chosen, text.source)


def test_one_step_can_be_ranked_alone(trace: Trace) -> None:
    table = ranked_pairs(trace, "cosine", top=None, step=7)
    assert set(table.pair_id) == set(trace.pairs[trace.pairs.step == 7].pair_id)
    assert set(table.step) == {7}


def test_wrong_wishes_are_answered_with_the_choices(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="excess, cosine"):
        ranked_pairs(trace, "beauty")
    with pytest.raises(BadInput, match=r"did you mean cosine\?"):
        ranked_pairs(trace, "Cosin")
    with pytest.raises(BadInput, match=r"nearest recorded steps are 117, 118, 119"):
        ranked_pairs(trace, step=500)
    bare = new_trace(tmp_path / "bare", Options(steps=3, realised=False))
    assert "realised" not in available(bare)
    with pytest.raises(BadInput, match="did not record"):
        ranked_pairs(bare, "realised")


def measured_falls(trace: Trace) -> dict[str, float]:
    """Each pair's change of chosen per token from before its first recorded update to after its last, by a loop."""
    first: dict[str, float] = {}
    fall: dict[str, float] = {}
    for row in trace.pairs.sort_values("step").to_dict("records"):
        start = first.setdefault(row["pair_id"], row["logp_chosen"])
        fall[row["pair_id"]] = (row["logp_chosen"] + row["realised_delta_chosen"] - start) / row["len_chosen"]
    return fall


def test_pairs_are_ranked_by_their_measured_fall_and_say_so(trace: Trace) -> None:
    slow = measured_falls(trace)
    table = ranked_pairs(trace, top=None)
    assert list(table.pair_id) == sorted(slow, key=lambda name: slow[name])
    assert table.recorded_change_chosen.tolist() == pytest.approx([slow[name] for name in table.pair_id])
    assert chosen_ranking(trace) == "fall" and ranking_words(trace).startswith("fall: largest measured fall")


def test_one_update_is_a_measured_fall_where_pairs_do_not_recur(tmp_path: Path) -> None:
    tables = simulate(DEFAULT)
    tables["pairs"] = tables["pairs"].drop_duplicates("pair_id")
    table = ranked_pairs(load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT))), top=None)
    once = tables["pairs"].set_index("pair_id").loc[table.pair_id]
    np.testing.assert_allclose(table.recorded_change_chosen, once.realised_delta_chosen / once.len_chosen)
    assert table.recorded_change_chosen.is_monotonic_increasing


@pytest.mark.parametrize(
    ("missing", "once", "expected"),
    [
        (["realised_delta"], False, "fall"),  # first to last recorded row
        (["realised_delta"], True, "reference"),
        (["realised_delta", "ref_logp"], True, "pushes"),
        (["realised_delta", "ref_logp", "update_delta"], True, "predicted"),
        (["realised_delta", "ref_logp", "update_delta", "predicted_delta"], True, "excess"),
        (["realised_delta", "ref_logp", "update_delta", "predicted_delta", "pull"], True, "margin"),
    ],
)
def test_the_default_is_the_best_that_was_recorded(
    missing: list[str], once: bool, expected: str, tmp_path: Path
) -> None:
    tables = simulate(DEFAULT)
    if "update_delta" in missing:
        del tables["pushes"]
    pairs = tables["pairs"].drop_duplicates("pair_id") if once else tables["pairs"]
    tables["pairs"] = pairs.drop(columns=[f"{name}_{side}" for name in missing for side in ("chosen", "rejected")])
    found = load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT)))
    assert chosen_ranking(found) == expected
    words = ranking_words(found)
    assert words.startswith(f"{expected}: {RANKINGS[expected].meaning}")
    assert ("no measured change was recorded" in words) is (expected in ("pushes", "predicted", "excess"))
    key = ranked_pairs(found, top=None)[RANKINGS[expected].column]
    assert key.notna().all()
    assert key.is_monotonic_decreasing if RANKINGS[expected].largest_first else key.is_monotonic_increasing


def test_a_number_that_few_pairs_have_ranks_nothing_by_default(tmp_path: Path) -> None:
    tables = simulate(DEFAULT)
    pairs = tables["pairs"].drop_duplicates("pair_id").copy()
    pairs.loc[pairs.index[3:], ["realised_delta_chosen", "realised_delta_rejected"]] = np.nan
    tables["pairs"] = pairs
    found = load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT)))
    assert "fall" in available(found) and chosen_ranking(found) == "reference"


def test_a_pairs_pushes_are_bars_on_one_scale(trace: Trace) -> None:
    """Parts are the means over the pair's rows, stacked without gaps from the middle, and no bar leaves its frame."""
    pair = trace.pushes["pair_id"].iloc[0]
    bars = push_bars(trace, pair)
    assert [one["side"] for one in bars] == ["chosen", "rejected"]
    reached = []
    for one in bars:
        rows = trace.pushes[(trace.pushes["pair_id"] == pair) & (trace.pushes["side"] == one["side"])]
        assert one["steps"] == len(rows)
        for name, words in PARTS.items():
            mean = float(rows[name].mean())
            drawn = [piece for piece in one["pieces"] if piece["words"] == words]
            assert len(drawn) == (mean != 0)
            if drawn:
                assert drawn[0]["text"] == signed(mean) and drawn[0]["colour"] == PUSH_COLOURS[name]
                middle = drawn[0]["start"] + drawn[0]["width"] / 2
                assert (middle > 100) == (mean > 0)
        for edges in (sorted((p["start"], p["start"] + p["width"]) for p in one["pieces"] if p["start"] >= 100),):
            assert all(end == pytest.approx(start, abs=0.02) for (_, end), (start, _) in itertools.pairwise(edges))
        reached += [abs(x - 100) for p in one["pieces"] for x in (p["start"], p["start"] + p["width"])]
    assert max(reached) == pytest.approx(100, abs=0.05)


def test_pairs_without_pushes_have_no_bars(tmp_path: Path) -> None:
    assert push_bars(new_trace(tmp_path / "run", Options(pushes=False)), "none") == []


def test_pairs_without_text_are_still_ranked(tmp_path: Path) -> None:
    tables = simulate(Options(steps=3))
    del tables["examples"]
    assert ranked_pairs(load_trace(write_tables(tmp_path / "run", tables, {}))).prompt.isna().all()


def plain(lines: list[str]) -> str:
    return "\n".join(Text.from_markup(line).plain for line in lines)


def test_the_summary_holds_table_and_verdicts(trace: Trace) -> None:
    text = plain(summary_lines(trace))
    for line in overview(trace):
        assert line.name in text
    for verdict in verdicts(trace):
        assert verdict.sentence in text
    assert "steps 0–11" in text and "steps 108–119" in text


def test_the_overview_is_median_and_share_of_both_tenths(trace: Trace) -> None:
    lines = {line.key: line for line in overview(trace)}
    first, last = trace.pairs[trace.pairs.step <= 11], trace.pairs[trace.pairs.step >= 108]
    assert lines["logp_chosen"].first == pytest.approx((first.logp_chosen / first.len_chosen).median())
    assert lines["cosine"].last == pytest.approx(last.grad_cosine.median())
    assert lines["case_2"].last == pytest.approx(
        ((last.realised_delta_chosen < 0) & (last.realised_delta_rejected <= 0)).mean()
    )
    margin = last.logp_chosen - last.ref_logp_chosen - last.logp_rejected + last.ref_logp_rejected
    assert lines["accuracy"].last == pytest.approx((margin > 0).mean())


def test_measures_by_log_ratios_are_listed_where_the_own_score_is_another(trace: Trace, tmp_path: Path) -> None:
    assert not any("log-ratio" in line.name for line in overview(trace))
    tables = simulate(Options(steps=4))
    tables["pairs"] = tables["pairs"].assign(score_chosen=2.0, score_rejected=1.0)
    lines = {line.name: line.last for line in overview(load_trace(write_tables(tmp_path / "run", tables, {})))}
    assert lines["margin"] == 1.0 != lines["log-ratio margin"] and "log-ratio accuracy" in lines


def test_held_out_pairs_stand_beside_the_training_pairs(tmp_path: Path) -> None:
    """First evaluation against the one after the last step, which only run.json has."""
    tables = simulate(Options(steps=4))
    tables["steps"] = tables["steps"].assign(
        eval_accuracy=[0.25, np.nan, 0.5, np.nan], eval_log_ratio_accuracy=[0.5, np.nan, 0.75, np.nan]
    )
    about = manifest(DEFAULT) | {"held_out": {"eval_accuracy": 1.0}}
    lines = {line.name: line for line in overview(load_trace(write_tables(tmp_path / "run", tables, about)))}
    own, common = lines["held-out accuracy"], lines["held-out log-ratio accuracy"]
    assert (own.first, own.last) == (0.25, 1.0) and (common.first, common.last) == (0.5, 0.75)
    assert "held-out margin" not in lines


def test_data_text_is_never_markup_or_control(tmp_path: Path) -> None:
    about = {**manifest(DEFAULT), "model": {"name": "[red]evil[/red] \x1b[31m"}}
    run = write_tables(tmp_path / "[bold]run", simulate(Options(steps=3)), about)
    console = Console(record=True, width=200, file=(tmp_path / "out").open("w"), force_terminal=True)
    lines = summary_lines(load_trace(run))
    assert "\x1b" not in "".join(lines)
    for line in lines:
        console.print(line)
    shown = console.export_text()
    assert "[red]evil[/red]" in shown and "[bold]run" in shown


def test_the_summary_of_an_unclosed_empty_trace(tmp_path: Path) -> None:
    text = plain(summary_lines(load_trace(write_tables(tmp_path / "run", {}, {}, "recording"))))
    assert "recording" in text and "was not closed" in text


def test_the_start_is_left_out_with_one_step(tmp_path: Path) -> None:
    found = load_trace(write_run(tmp_path / "run", Options(steps=1)))
    assert all(np.isnan(line.first) for line in overview(found))
    assert "nan" not in plain(summary_lines(found))


def test_pairs_are_ranked_by_their_fall_to_the_end_of_the_run(tmp_path: Path) -> None:
    """Also where each pair came once; its mean push over the steps left stands in where nothing was measured."""
    tables, draw = simulate(DEFAULT), np.random.default_rng(5)
    first = tables["pairs"].drop_duplicates("pair_id").set_index("pair_id")
    ends = {side: first[f"logp_{side}"] + draw.normal(-3, 2, len(first)) for side in ("chosen", "rejected")}
    tables["final"] = pd.DataFrame({f"logp_{side}": end for side, end in ends.items()}).reset_index()
    tables["pairs"] = tables["pairs"].drop_duplicates("pair_id")
    found = load_trace(write_tables(tmp_path / "run", tables, manifest(DEFAULT)))
    slow = (ends["chosen"] - first.ref_logp_chosen) / first.len_chosen  # the reference is the start
    table = ranked_pairs(found, top=None)
    assert chosen_ranking(found) == "run" and list(table.pair_id) == list(slow.sort_values().index)
    np.testing.assert_allclose(table.run_change_chosen, slow[table.pair_id])
    rejected = (ends["rejected"] - first.ref_logp_rejected) / first.len_rejected
    np.testing.assert_allclose(table.run_change_rejected, rejected[table.pair_id])
    on_chosen = tables["pushes"].query("side == 'chosen'").groupby("pair_id")
    left = max(tables["steps"].step.max(), tables["pairs"].step.max()) - on_chosen.step.min() + 1
    totals = on_chosen.total.mean() * left / first.len_chosen
    by_pushes = ranked_pairs(found, "pushes", top=None)
    np.testing.assert_allclose(by_pushes.pushed_chosen, totals.sort_values())


def test_a_list_shows_the_case_that_all_of_its_pairs_have(tmp_path: Path) -> None:
    tables = simulate(DEFAULT)
    runs = {}
    for name, bases in (("realised", []), ("update", ["realised"]), ("plain", ["realised", "update"])):
        frames = {**tables, "pairs": tables["pairs"].copy()}
        for basis in bases:  # a single pair's last row without it
            last = frames["pairs"].drop_duplicates("pair_id", keep="last").index[0]
            frames["pairs"].loc[last, [f"{basis}_delta_{side}" for side in ("chosen", "rejected")]] = np.nan
        runs[name] = load_trace(write_tables(tmp_path / name, frames, manifest(DEFAULT)))
    for name, found in runs.items():
        assert shown_case(ranked_pairs(found, "cosine", top=None)) == f"case_{name}"
