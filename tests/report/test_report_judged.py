"""Outputs in numbers by hand, and a judge's file read back beside the runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from dyn_probe_cli.app import app
from report_frames import Options
from report_runs import new_trace
from typer.testing import CliRunner

from dyn_probe.errors import BadInput
from dyn_probe.report.build import build_report
from dyn_probe.report.outputs.judged import judged_runs, read_judged
from dyn_probe.report.outputs.text_numbers import text_lines, text_numbers

ANNOTATIONS = [
    {"generator_1": "gpt", "generator_2": "one", "output_2": "abcd", "preference": 2.0},
    {"generator_1": "gpt", "generator_2": "one", "output_2": "ab", "preference": 1.0},
    {"generator_1": "gpt", "generator_2": "one", "output_2": "abc", "preference": 1.5},
    {"generator_1": "gpt", "generator_2": "two", "output_2": "x", "preference": 1.9},
    {"generator_1": "gpt", "generator_2": "two", "output_2": "x", "preference": None},
]
LEADERBOARD = (
    ",win_rate,standard_error,n_total,avg_length,length_controlled_winrate\none,40.0,5.0,99,812,45.5\ntwo,61,4,99,90,\n"
)


def test_numbers_of_texts_by_hand() -> None:
    rows = [
        {"output": "a b a b a b", "cut_off": True},  # 4-grams abab, baba, abab: 2 of 3 differ
        {"output": "c", "cut_off": False},
        {"output": "", "cut_off": False},
    ]
    found = text_numbers(rows)
    assert found["outputs"] == 3 and found["words"] == pytest.approx(7 / 3) and found["characters"] == pytest.approx(4)
    assert found["distinct_1"] == pytest.approx(3 / 7) and found["distinct_2"] == pytest.approx(2 / 5)
    assert found["repeated_4"] == pytest.approx(1 / 3) and found["empty"] == found["cut_off"] == pytest.approx(1 / 3)
    assert "33% cut off" in text_lines(found)[0] and "repeated 4-grams 33%" in text_lines(found)[1]
    short = text_numbers([{"output": "one"}])
    assert math.isnan(short["repeated_4"]) and math.isnan(short["cut_off"]) and "repeated" not in text_lines(short)[1]


def test_annotations_and_leaderboards_are_read(tmp_path: Path) -> None:
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(ANNOTATIONS))
    found = read_judged(file)
    assert found["one"].win_rate == pytest.approx(0.5) and found["one"].length == pytest.approx(3)
    assert found["one"].error == pytest.approx(0.5 / math.sqrt(3))
    assert found["two"].win_rate == pytest.approx(0.9) and math.isnan(found["two"].error)
    table = tmp_path / "leaderboard.csv"
    table.write_text(LEADERBOARD)
    one, two = read_judged(table)["one"], read_judged(table)["two"]
    assert (one.win_rate, one.error, one.length_controlled, one.length) == pytest.approx((0.4, 0.05, 0.455, 812))
    assert math.isnan(two.length_controlled)


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", '[{"preference": "no"}]', "[" * 5000])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "judged.json"
    file.write_text(text)
    with pytest.raises(BadInput, match="AlpacaEval"):
        read_judged(file)


@pytest.mark.usefixtures("unrendered")
def test_comparisons_show_what_the_judge_said(tmp_path: Path) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for seed, run in enumerate(runs):
        new_trace(run, Options(steps=10, seed=seed))
    file = tmp_path / "leaderboard.csv"
    file.write_text(LEADERBOARD)
    done = CliRunner().invoke(app, ["summary", *map(str, runs), "--judged", str(file)], catch_exceptions=False)
    lines = {line.split("  ")[0]: line for line in done.output.splitlines()}
    assert "40%" in lines["win rate under the judge"] and "61%" in lines["win rate under the judge"]
    assert "–" in lines["win rate, length controlled"] and "812" in lines["mean length of outputs"]
    page = build_report(runs, tmp_path / "both", judged=file).read_text(encoding="utf-8")
    assert "win rate under the judge" in page
    with pytest.raises(BadInput, match="several runs"):
        build_report(runs[:1], judged=file)
    with pytest.raises(BadInput, match=r"no generator 'three'.*it has 'one', 'two'"):
        judged_runs(file, ["one", "three"])
