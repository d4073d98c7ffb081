"""KL to the reference in reports: the margins of several runs at one KL, the sentence about them, and both figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from figure_runs import drawn
from report_checks import only, value
from report_frames import Options, simulate
from report_runs import manifest, write_tables

from dyn_probe.report.figures.margin_for_kl import compare_kl, margin_for_kl
from dyn_probe.report.side_by_side.kl_price import at_one_kl
from dyn_probe.report.side_by_side.quantities import quantities
from dyn_probe.report.verdicts.comparison import comparison
from dyn_probe.trace.reader import Trace, load_trace


def made(out: Path, kl: list[float], margin: list[float], column: str = "kl_ref", mass: bool = False) -> Trace:
    """A run with evaluations at its first steps, the last of them after its end."""
    tables = simulate(Options(steps=20, mass=mass))
    steps = tables["steps"]
    rows = steps.index[: len(kl) - 1]
    steps.loc[rows, f"eval_{column}"], steps.loc[rows, "eval_log_ratio_margin"] = kl[:-1], margin[:-1]
    tables["mass"][column] = 0.01 * tables["mass"].step
    end = {"held_out": {f"eval_{column}": kl[-1], "eval_log_ratio_margin": margin[-1]}}
    return load_trace(write_tables(out, tables, manifest(Options()) | end))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    """`near` reaches 0.2 nats/token, `far` goes on to 0.8 and comes back."""
    folder = tmp_path_factory.mktemp("runs")
    far = made(folder / "far", [0.0, 0.1, 0.3, 0.8, 0.1], [0.0, 1.0, 2.0, 2.5, 9.0], "kl_ref_sampled", mass=True)
    return {"near": made(folder / "near", [0.0, 0.2], [0.0, 1.2]), "far": far}


def test_margins_are_compared_where_all_runs_first_reach_one_kl(runs: dict[str, Trace]) -> None:
    found = at_one_kl(runs)
    assert found is not None and found.kl == pytest.approx(0.2)
    assert found.margins == {"near": pytest.approx(1.2), "far": pytest.approx(1.5)}  # halfway from 0.1 to 0.3
    said = only([one for one in comparison(runs) if "KL to the reference" in one.sentence])
    assert "near +1.20, far +1.50 nats/sequence: far buys it cheapest" in said.sentence
    assert value(said, "common_kl") == pytest.approx(0.2) and value(said, "run_2_margin_at_kl") == pytest.approx(1.5)
    row = only([one for one in quantities(runs) if one.key == "margin_at_kl"])
    assert row.values == found.margins


@pytest.mark.parametrize("kl", [[0.0], [0.0, 0.0]])
def test_runs_that_did_not_leave_the_reference_are_not_compared(
    kl: list[float], runs: dict[str, Trace], tmp_path: Path
) -> None:
    still = made(tmp_path / "still", kl, [0.0] * len(kl))
    assert at_one_kl({"near": runs["near"], "still": still}) is None
    assert not any("KL to the reference" in one.sentence for one in comparison({"near": runs["near"], "still": still}))


def test_the_figures_draw_what_was_recorded(runs: dict[str, Trace]) -> None:
    left, right = drawn(margin_for_kl(runs["far"])).axes
    assert left.lines[0].get_xydata().tolist() == [[0, 0], [0.1, 1], [0.3, 2], [0.8, 2.5], [0.1, 9]]
    assert "sampled" in left.get_xlabel()
    held_out, chosen, *_ = right.lines
    assert held_out.get_ydata().tolist() == [0, 0.1, 0.3, 0.8, 0.1]
    assert np.allclose(chosen.get_xydata(), [[0, 0], [10, 0.1]])
    near, far, common = drawn(compare_kl(runs)).axes[0].lines
    assert near.get_xydata().tolist() == [[0, 0], [0.2, 1.2]] and len(far.get_xdata()) == 5
    assert common.get_xdata() == pytest.approx([0.2, 0.2])


def test_the_kl_over_training_ends_where_the_margin_for_kl_does(runs: dict[str, Trace]) -> None:
    """The evaluation after the last step stands in both panels, after as many steps as were taken."""
    left, right = margin_for_kl(runs["near"]).axes[:2]
    assert left.lines[0].get_xdata().tolist() == right.lines[0].get_ydata().tolist() == [0.0, 0.2]
    assert right.lines[0].get_xdata().tolist() == [0, 20] and right.get_xlim() == (0, 20)


def test_a_run_without_either_says_what_is_needed(tmp_path: Path) -> None:
    trace = load_trace(write_tables(tmp_path / "bare", simulate(Options(steps=3)), manifest(Options())))
    (ax,) = margin_for_kl(trace).axes
    assert "--eval-fraction" in ax.texts[0].get_text()
