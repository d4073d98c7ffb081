"""What half precision does to the numbers is said, and no digit is shown beyond it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_frames import Options, simulate
from report_runs import manifest, write_tables

from dyn_probe.report.first_screen.alarms import alarms
from dyn_probe.report.first_screen.headline import confidence
from dyn_probe.report.frames import half_error, half_errors
from dyn_probe.report.overview import overview
from dyn_probe.report.page_data import overview_table
from dyn_probe.report.pair_cards import pair_cards
from dyn_probe.report.summary import summary_lines
from dyn_probe.report.verdicts.status import precision
from dyn_probe.report.verdicts.verdict import Number, within, written
from dyn_probe.trace.reader import Trace, load_trace

SMALL = Options(steps=12, batch=2, pairs=6)
ABOUT = {"type": "bfloat16", "method": "…"}
ERRORS = {"norm_error": 0.021, "inner_error": 0.013, "cosine_error": 0.017, "logp_error": 0.2}


def recorded(
    folder: Path, errors: dict[str, float] = ERRORS, about: dict[str, str] | None = None, **more: float
) -> Trace:
    """A small run with errors at steps 0 and 3, half as large at the first of them."""
    tables = simulate(SMALL)
    steps = tables["steps"]
    for name, value in (errors | more).items():
        steps[name] = np.where(steps["step"] == 3, value, np.where(steps["step"] == 0, value / 2, np.nan))
    return load_trace(write_tables(folder / "run", tables, {**manifest(SMALL), "precision": about or ABOUT}))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.123456, math.nan, "0.123"),
        (0.123456, 0.0, "0.123"),
        (0.123456, 0.02, "0.12"),
        (0.123456, 0.2, "0.1"),
        (0.123456, 2.0, "0"),
        (0.0123456, 0.02, "0.01"),
        (-0.004, 0.02, "0.00"),
        (-0.876543, 0.004, "−0.877"),
        (1234.5, 30.0, "1,230"),
        (1234.5, 0.3, "1,234"),
        (0.0000123, 3e-6, "1.2e−5"),
        (0.0, 0.1, "0"),
    ],
)  # fmt: skip
def test_no_digit_beyond_the_error(value: float, error: float, text: str) -> None:
    assert within(value, error) == text
    assert written(Number("", "", value, "1"), error) == text


@pytest.mark.parametrize("error", [0.5, 0.03, 0.002, 1e-4])
def test_what_is_shown_is_no_further_from_the_number_than_half_the_last_place_of_the_error(error: float) -> None:
    for value in np.random.default_rng(0).normal(size=200) * 10:
        shown = float(within(float(value), error, 9).replace("−", "-").replace(",", ""))
        place = 10.0 ** math.floor(math.log10(error))
        assert abs(shown - value) <= place / 2 + 1e-12
        assert abs(shown / place - round(shown / place)) < 1e-6


def test_errors_of_a_row_are_in_its_own_units(tmp_path: Path) -> None:
    found = half_errors(recorded(tmp_path))
    assert found == ERRORS  # the largest of both comparisons
    row = {"grad_norm_chosen": 50.0, "grad_norm_rejected": 4.0, "grad_inner": -30.0, "grad_cosine": -0.15, "loss": 1.0}
    assert half_error(found, "grad_norm_chosen", row) == pytest.approx(0.021 * 50)
    assert half_error(found, "grad_inner", row) == pytest.approx(0.013 * 200)
    assert half_error(found, "grad_cosine", row) == 0.017 and half_error(found, "logp_chosen", {}) == 0.2
    assert math.isnan(half_error(found, "loss", row)) and math.isnan(half_error({}, "grad_cosine", row))


def test_the_trust_section_says_it(tmp_path: Path) -> None:
    trace = recorded(tmp_path, underflow_share=0.3, overflow_share=0.0)
    (said,) = precision(trace)
    assert said.level == "note" and not alarms(trace)
    assert said.sentence.startswith("Cosine ± 0.017, gradient norms ± 2.1%, inner product ± 1.3% of ‖g_w‖‖g_l‖, ")
    assert "log-probabilities ± 0.20 nats/sequence (bfloat16): the largest of 2 comparisons" in said.sentence
    assert "up to 30% below its smallest normal number (bfloat16)." in said.sentence
    assert "cosine ± 0.017 (bfloat16)" in confidence(trace)
    assert any(said.sentence[:40] in line for line in summary_lines(trace))


@pytest.mark.parametrize("more", [{"cosine_error": 0.3}, {"underflow_share": 0.9}, {"overflow_share": 0.01}])
def test_numbers_that_half_precision_leaves_unsure_are_warned_of_first(more: dict[str, float], tmp_path: Path) -> None:
    (said,) = alarms(recorded(tmp_path, **more))
    assert said.startswith("Cosine ± ")


def test_an_overflow_of_the_first_steps_alone_is_no_alarm(tmp_path: Path) -> None:
    tables = simulate(SMALL)
    for name, value in {**ERRORS, "underflow_share": 0.9, "overflow_share": 0.5}.items():
        last = 0.0 if name.endswith("share") else value
        tables["steps"][name] = np.where(tables["steps"]["step"] == 0, value, last)
    trace = load_trace(write_tables(tmp_path / "run", tables, {**manifest(SMALL), "precision": ABOUT}))
    assert not alarms(trace)


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    (said,) = precision(recorded(tmp_path, {}, {"type": "float16", "skipped": "the weights are quantised"}))
    assert said.sentence.endswith("computed in float16 are was not measured: the weights are quantised.")
    assert not precision(load_trace(write_tables(tmp_path / "plain", simulate(SMALL), manifest(SMALL))))


def test_summary_report_and_cards_show_no_more_digits(tmp_path: Path) -> None:
    trace, bare = recorded(tmp_path), load_trace(write_tables(tmp_path / "bare", simulate(SMALL), manifest(SMALL)))
    for run, digits in ((trace, 2), (bare, 3)):
        cosines = {line.key: line for line in overview(run)}["cosine"]
        row = next(row for row in overview_table(run)["rows"] if row["key"] == "cosine")
        assert row["last"] == within(cosines.last, 0.017 if run is trace else math.nan)
        assert len(row["last"].partition(".")[2]) == digits
        (line,) = [line for line in summary_lines(run) if re.match(r"cosine ", line)]
        assert row["last"] in line.split()
        cards = pair_cards(run)["cards"]
        shown = [number["text"] for card in cards for number in card["numbers"] if number["name"] == "grad_cosine"]
        assert shown and all(len(text.partition(".")[2]) <= digits for text in shown)
        assert run is bare or max(len(text.partition(".")[2]) for text in shown) == digits


def test_pairs_in_the_terminal_shows_no_more_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dyn_probe_cli.pairs import pairs

    run = recorded(tmp_path)
    pairs(run.path, by="cosine", top=3, step=None, form="table")
    found = re.findall(r"grad_cosine (\S+)", capsys.readouterr().out)
    wanted = pd.Series(run.pairs.groupby("pair_id")["grad_cosine"].last()).nlargest(3)
    assert [float(text) for text in found] == pytest.approx(list(wanted), abs=0.005 + 1e-9)
    assert len(found) == 3 and {len(text.partition(".")[2]) for text in found} == {2}, found
