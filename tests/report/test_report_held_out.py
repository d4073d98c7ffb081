"""Held-out pairs beside the pairs that were trained on: the line, the warning and its thresholds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from moved_runs import held_out_run
from report_checks import only, page_of, value
from report_runs import new_trace

from dyn_probe.report.side_by_side.held_out_pairs import held_out_change
from dyn_probe.report.summary import summary_lines
from dyn_probe.report.verdicts.generalised import WORTH, generalised, held_out_line
from dyn_probe.report.verdicts.movement import STILL
from dyn_probe.trace.reader import Trace

LINE = "On held-out pairs chosen fell 1.5 nats/sequence, rejected fell 3.2."


@pytest.fixture(scope="module")
def memorised(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Chosen rose on the pairs that were trained on and fell on the held-out ones."""
    return held_out_run(tmp_path_factory.mktemp("runs") / "memorised", (0.25, -1.0), (-1.5, -3.2))


def test_the_first_screen_says_what_became_of_held_out_pairs(memorised: Trace) -> None:
    assert held_out_line(memorised) == LINE
    assert f'<p class="held">{LINE}</p>' in page_of(memorised)
    assert f"[bold]{LINE}[/]" in summary_lines(memorised)


def test_a_rise_on_training_pairs_that_hides_a_fall_on_held_out_pairs_is_warned_about(memorised: Trace) -> None:
    found = only(generalised(memorised))
    assert found.level == "warning" and "do not" not in found.sentence and "does not carry over" in found.sentence
    assert value(found, "held_out_change_chosen") == pytest.approx(-1.5)
    assert value(found, "held_out_change_rejected") == pytest.approx(-3.2)
    assert value(found, "held_out_margin") == pytest.approx(1.7)
    assert value(found, "trained_change_chosen") == pytest.approx(0.25)
    assert value(found, "trained_change_rejected") == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("trained", "part", "level"),
    [
        (0.25, 1.01, "warning"),
        (0.25, 0.99, "note"),
        (-0.9 * STILL, 1.01, "warning"),
        (-1.1 * STILL, 1.01, "note"),
        (0.25, -1.0, "note"),
    ],
)
def test_the_warning_has_two_thresholds(
    trained: float, part: float, level: str, tmp_path: Path, memorised: Trace
) -> None:
    length = float(np.median(memorised.pairs.len_chosen))
    run = held_out_run(tmp_path / "run", (trained, -1.0), (-part * WORTH * length, 0.0))
    assert only(generalised(run)).level == level
    assert "rejected did not move" in held_out_line(run)


def test_the_evaluation_after_the_last_step_counts(tmp_path: Path) -> None:
    after = {"held_out": {"eval_logp_chosen": -39.0, "eval_logp_rejected": -45.5}}
    found = held_out_change(held_out_run(tmp_path / "run", (0.2, -1.0), (-1.5, -3.2), **after))
    assert found is not None and (found.chosen, found.rejected) == (1.0, -5.5)
    assert found.when == "from the start of training to the end"


def test_nothing_is_said_where_nothing_was_held_out(tmp_path: Path) -> None:
    bare = new_trace(tmp_path / "bare")
    assert held_out_change(bare) is None and held_out_line(bare) == "" and generalised(bare) == []
    assert 'class="held"' not in page_of(bare)
