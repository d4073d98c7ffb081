"""The first screen: headline, confidence, fix table in words; what stands behind it, folded by question."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from moved_runs import moved_run, moved_tables
from report_checks import Page, page_of
from report_frames import DEFAULT, Options
from report_runs import manifest, new_trace, write_tables

from dyn_probe.report.changes import Change, run_change, start_rows
from dyn_probe.report.figures import FIGURES
from dyn_probe.report.first_screen import fix_table
from dyn_probe.report.first_screen.fix_texts import BEYOND, change_text, fixes, margin_text, places
from dyn_probe.report.first_screen.headline import confidence, headline, through
from dyn_probe.report.first_screen.questions import QUESTIONS, STORY
from dyn_probe.report.first_screen.trouble import WORTH, trouble
from dyn_probe.report.push_parts import balance
from dyn_probe.report.summary import summary_lines
from dyn_probe.report.verdicts import TOPICS, verdicts
from dyn_probe.trace.reader import Trace, load_trace


@pytest.fixture(scope="module")
def fallen(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return moved_run(tmp_path_factory.mktemp("runs") / "fallen", -0.38, -1.9)


def test_the_change_is_that_of_the_same_pairs_from_the_start_to_the_end(fallen: Trace, tmp_path: Path) -> None:
    found = run_change(fallen)
    assert found is not None and found.n == fallen.pairs.pair_id.nunique() and "from before training" in found.basis
    np.testing.assert_allclose(found.chosen, -0.38)
    pairs = fallen.pairs.assign(ref_logp_chosen=np.nan, ref_logp_rejected=np.nan)
    first = pairs.sort_values("step").drop_duplicates("pair_id").set_index("pair_id")
    pd.testing.assert_series_equal(
        start_rows(pairs).logp_rejected, first.logp_rejected.astype(float), check_names=False
    )
    recorded = run_change(new_trace(tmp_path / "run"))
    assert recorded is not None and "to the end of the run" not in recorded.basis


def test_the_headline_says_what_happened_and_what_moved_it(fallen: Trace) -> None:
    happened, moved = headline(fallen)
    both = (fallen.pairs.realised_delta_chosen < 0) & (fallen.pairs.realised_delta_rejected <= 0)
    assert happened == (
        f"Chosen fell 0.38 nats/token (×0.68), rejected fell 1.9 nats/token (×0.15); {both.mean():.0%} of updates "
        "lowered both."
    )
    found = balance(fallen, own=False)
    assert (
        found is not None
        and f"whose rejected pushes outweigh their chosen pushes on it by {100 * found.value:.0f}%" in moved
    )
    assert confidence(fallen).startswith(f"Medians over the same {fallen.pairs.pair_id.nunique()} pairs")
    assert "(standard error)" in confidence(fallen) and "gradients agree with autograd to 3.1e−7" in confidence(fallen)


def test_what_a_response_moved_through_is_the_largest_group_along_the_total(tmp_path: Path) -> None:
    parts = {"own_chosen": 0.4, "own_rejected": -0.5, "others": -0.02, "past": -0.3, "decay": 0.0, "rounding": 0.0}
    run = moved_run(tmp_path / "past", -0.38, -1.9, **parts)
    rows = run.pairs.groupby("pair_id")["step"].transform("count")
    run.pairs["realised_delta_chosen"] = -0.38 * run.pairs.len_chosen / rows  # all of it in the pair's own steps
    assert through(run, "chosen") == "momentum" and headline(run)[1].endswith("mostly through momentum.")
    assert (
        through(moved_run(tmp_path / "own", -0.38, -1.9, **parts | {"own_rejected": -0.9}), "chosen") == "its own pair"
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "side"),
    [
        (-WORTH, -1, "chosen"),
        (-0.9 * WORTH, -1, ""),
        (0.3, WORTH, "rejected"),
        (0.3, 0.9 * WORTH, ""),
        (-0.3, 0.3, "chosen"),
    ],
)
def test_the_trouble_is_a_fall_of_chosen_or_a_rise_of_rejected(
    chosen: float, rejected: float, side: str, tmp_path: Path
) -> None:
    run = moved_run(tmp_path / "run", chosen, rejected)
    assert trouble(run) == side
    table = fixes(run)
    assert ("Nothing to change" in table["none"]) == (side == "")
    assert headline(run)[0].startswith("Rejected rose" if side == "rejected" else "Chosen ")
    assert side != "rejected" or "updates raised both" in headline(run)[0]


def test_a_run_without_pushes_says_what_it_lacks(tmp_path: Path) -> None:
    bare = moved_run(tmp_path / "bare", -0.38, -1.9, Options(pushes=False))
    assert "record with --metric-every" in headline(bare)[1] and "No remedy was estimated" in fixes(bare)["none"]
    whole = moved_run(tmp_path / "whole", -0.38, -1.9, all_chosen=np.nan, all_rejected=np.nan)
    assert "--split-momentum" in headline(whole)[1] and "mostly through" in headline(whole)[1]
    against = moved_run(tmp_path / "against", -0.38, -1.9, all_chosen=-1.0)
    assert headline(against)[1].endswith("; taken together, chosen pushes of other pairs do not raise it.")
    assert balance(against, own=False) is None and "--split-momentum" not in headline(against)[1]
    once = new_trace(tmp_path / "once", Options(steps=1, batch=1, pairs=1, reference=False))
    assert "not known" in headline(once)[0] and fixes(once)["none"]


def test_a_run_that_cannot_be_replayed_says_what_it_lacks(tmp_path: Path) -> None:
    split = moved_run(tmp_path / "split", -0.38, -1.9, all_chosen=np.nan, all_rejected=np.nan)
    assert "record once more with --split-momentum and --metric-every N" in fixes(split)["none"]
    tables = moved_tables(-0.38, -1.9, DEFAULT)
    tables["pushes"] = tables["pushes"][tables["pushes"].step == 0]
    one = load_trace(write_tables(tmp_path / "one", tables, manifest(DEFAULT)))
    assert "two steps that were taken apart: record a longer run, or with --metric-every 1" in fixes(one)["none"]
    past = moved_run(tmp_path / "past", -0.38, -1.9)
    past.pairs["pull_rejected"] = -0.1
    assert "the mean pull on a side is 0 or less" in fixes(past)["none"] and "--split" not in fixes(past)["none"]
    weighted = moved_run(tmp_path / "weighted", -0.38, -1.9)
    weighted.pairs["pull_rejected"] = np.nan
    assert "which were not recorded" in fixes(weighted)["none"]


def test_a_run_of_trl_reads_trls_settings_first(tmp_path: Path) -> None:
    run = moved_run(tmp_path / "run", -0.38, -1.9)
    ours = "\n".join(summary_lines(run))
    run.manifest["trainer"] = {"name": "DPOTrainer"}
    theirs, rows = "\n".join(summary_lines(run)), fixes(run)["rows"]
    setting = next(row for row in rows if row["trl"])
    assert "settings of TRL" in theirs and "prints their settings for TRL" in theirs and "not in TRL" in theirs
    assert "options of dyn-probe record" in ours and "measures them" in ours and "not in TRL" not in ours
    text = " ".join(Page(page_of(run)).text.split())
    assert f"{setting['margin']}{setting['trl']} {setting['typed']}" in text


def test_steps_that_were_taken_apart_may_have_gone_the_other_way(tmp_path: Path) -> None:
    """A rise over the run beside a push down in the few steps that were taken apart is not called its cause."""
    run = moved_run(tmp_path / "run", 0.36, 0.22, all_chosen=np.nan, all_rejected=np.nan, total=-4.6)
    assert trouble(run) == "rejected"
    assert headline(run)[1].startswith("The steps that were taken apart moved rejected the other way (−4.6 nats")
    split = moved_run(tmp_path / "split", 0.36, 0.22, total=-4.6)
    split.pairs["realised_delta_rejected"] = 0.22 * split.pairs.len_rejected  # its own steps made it all
    assert "moved mostly through" not in headline(split)[1] and "rejected" in headline(split)[1]
    along = moved_run(tmp_path / "along", 0.36, 0.22, all_chosen=np.nan, all_rejected=np.nan, total=0.6)
    assert headline(along)[1].startswith("Rejected moved by +0.6")


def test_headline_and_table_stand_within_the_first_words_of_the_page(fallen: Trace) -> None:
    words = Page(page_of(fallen).partition("</style>")[2]).text.split()
    start = " ".join(words[:350])
    for sentence in headline(fallen):
        assert " ".join(sentence.split()) in start
    rows = fixes(fallen)["rows"]
    assert rows
    for row in rows:
        assert row["typed"] in start and row["words"] in start


def test_every_topic_and_every_figure_stands_in_one_fold() -> None:
    topics = [topic for row in QUESTIONS for topic in row.topics]
    figures = [figure for row in QUESTIONS for figure in row.figures]
    assert sorted(topics) == sorted(TOPICS) and sorted([*figures, STORY]) == sorted(FIGURES)


def test_statements_that_are_fine_stand_in_one_line_at_the_end(fallen: Trace) -> None:
    html = page_of(fallen)
    fine = [verdict for verdict in verdicts(fallen) if verdict.level == "ok"]
    line = html.partition('id="fine"')[2]
    assert fine and f"{len(fine)} statement" in line and 'id="trust"' not in line
    assert not re.search(r"badge ok", html.partition('id="fine"')[0])


def test_the_terminal_opens_with_the_same(fallen: Trace) -> None:
    lines = "\n".join(summary_lines(fallen))
    for text in (*headline(fallen), *(row["typed"] for row in fixes(fallen)["rows"])):
        assert text in lines


@pytest.mark.parametrize(
    ("value", "decimals", "text"), [(0.126, 2, "+0.13"), (-0.004, 2, "0.00"), (-0.004, 3, "−0.004"), (0.0, 2, "0.00")]
)
def test_changes_are_written_in_so_many_decimals(value: float, decimals: int, text: str) -> None:
    assert change_text(value, decimals) == text


def test_errors_keep_a_digit() -> None:
    assert [places(value, 1) for value in (0.03, 0.3, 0.004, 0.0)] == [2, 2, 3, 2]


def test_a_run_without_a_reference_moved_from_where_it_was_before_training(tmp_path: Path) -> None:
    """The table `final` says the start; pairs that it lacks do not count."""
    tables = moved_tables(-0.38, -1.9, Options())
    final, pairs = tables["final"], tables["pairs"]
    for side in ("chosen", "rejected"):
        final[f"start_logp_{side}"] = final[f"logp_{side}"] + 0.2 * final[f"len_{side}"]
        pairs[f"ref_logp_{side}"] = np.nan
    tables["final"] = final.iloc[:-3]
    found = run_change(load_trace(write_tables(tmp_path / "run", tables, manifest(Options()))))
    assert found is not None and "from before training" in found.basis
    assert set(found.ids) == set(final.pair_id[:-3]) and found.n == len(final) - 3
    np.testing.assert_allclose(found.chosen, -0.2)
    np.testing.assert_allclose(found.rejected, -0.2)


@pytest.mark.parametrize(("cost", "said"), [(0.5, "1.5"), (-0.19, "2.2"), (-0.21, BEYOND)])
def test_a_margin_is_named_as_far_as_the_run_reached(cost: float, said: str) -> None:
    assert margin_text(2.0, cost) == said


def test_a_margin_is_off_by_a_fifth_at_least() -> None:
    """First order alone, without resamples and with a walk that ends where the run did, is no exact margin."""
    moved = Change("the same pairs", np.full(6, -0.5), np.full(6, -1.5), True, 6)
    sums = {"chosen": np.array([-0.5]), "rejected": np.array([-1.5])}
    still = SimpleNamespace(**sums)
    found = fix_table._estimate("likelihood", SimpleNamespace(), "chosen", moved, still, still, False)  # type: ignore[arg-type]
    assert found.margin == pytest.approx(1.0) and found.margin_error == pytest.approx(fix_table.ROUGH)
    apart = SimpleNamespace(**{**sums, "rejected": np.array([-1.2])})
    found = fix_table._estimate("likelihood", SimpleNamespace(), "chosen", moved, apart, apart, False)  # type: ignore[arg-type]
    assert found.margin_error == pytest.approx(np.hypot(fix_table.ROUGH, 0.3))
